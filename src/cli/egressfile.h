/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operator's configuration of egress, as far as `podflare serve` looks at
 * it: whether anything may go out at all, which decides how the emulated
 * host's network is made, and its bytes, which are handed into it. What is in
 * it is read by the daemon, which also says what is wrong with it.
 *
 * Fails closed: a file that cannot be read, or that is no JSON object, lets
 * nothing out. That is no reason not to start: sandboxes work without egress.
 *
 * No state. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#define EGRESSFILE_MAX (1u << 20)

struct egressfile {
	char path[PATH_MAX]; /* absolute; "" = none was given */
	bool out;            /* something may go out: unless the file forbids it, or is of no use */
	char *data;          /* its bytes; NULL when there is none, or it could not be read */
	size_t len;
	struct err problem; /* why it is of no use; num 0: it is */
};

/*
 * The file of the option --egress-config, else of PODFLARE_EGRESS_CONFIG; empty
 * or NULL: none, and what the daemon does without one holds. 0, also when the
 * file is of no use: f->problem has the sentence then. -errno with a sentence
 * when not even its name can be handed on. egressfile_free() in any case.
 */
__must_check int egressfile_read(struct egressfile *f, const char *option, struct err *err);
void egressfile_free(struct egressfile *f);
