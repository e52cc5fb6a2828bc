/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What templates there are: from --template options, from DIR/templates of
 * --guest, or one without a warm-up from a bare image; and their metadata files
 * (template.json). A template named on the command line that is wrong keeps the
 * daemon from starting; a wrong directory is left out with a warning.
 *
 * Images are opened here and read later (template.c): what is built meanwhile has another
 * template.json, and both are seen together after a restart.
 *
 * Runs once, before the loop. fork: descriptors are close-on-exec.
 */
#pragma once

#include "daemon/config.h"
#include "lib/err.h"

#include <stddef.h>
#include <stdint.h>

#define TEMPLATE_NAME_MAX 63

struct template_spec {
	char name[TEMPLATE_NAME_MAX + 1];
	char *description, *warmup; /* may be NULL */
	char *image_path;
	int image_fd;         /* of the file that was there at the start; -1: in memory by now */
	uint64_t image_bytes; /* its size then */
	uint32_t memory_mib, vcpus, disk_mib;
};

/* At least one, the first is the default of creates; freed with template_specs_free(). */
int template_specs_load(struct template_spec **out, size_t *n, const struct config *c,
			struct err *err);
void template_specs_free(struct template_spec *specs, size_t n);
void template_spec_free(struct template_spec *s);

/* Small letters, digits, '-' and '_', not at the start; 1 to TEMPLATE_NAME_MAX. */
bool template_name_valid(const char *name, size_t len);
