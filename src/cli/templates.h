/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Templates that were built: folders in guest/templates of the installation
 * with template.json and rootfs.erofs, made by guest/template.py. What is in
 * these files is the daemon's business; here only their names and places
 * count. No state; nothing is written.
 */
#pragma once

#include "cli/paths.h"
#include "lib/err.h"

#include <limits.h>
#include <stddef.h>

#define TEMPLATES_MAX      64
#define TEMPLATES_NAME_MAX 32 /* characters: a-z, 0-9 and '-' */

struct template
{
	char name[TEMPLATES_NAME_MAX + 1];
	char json[PATH_MAX];
	char image[PATH_MAX];
};

struct templates {
	struct template *list; /* "default" first, then by name */
	size_t n;
	size_t incomplete; /* folders without one of their files, left out with a message */
};

/*
 * All templates of the installation; the caller frees with templates_free().
 * An error when there is no "default", or more than TEMPLATES_MAX.
 */
__must_check int templates_find(struct templates *t, const struct paths *p, struct err *err);
void templates_free(struct templates *t);

/* The word of podflared's --template: NAME=JSON=IMAGE. */
__must_check int templates_option(const char *name, const char *json, const char *image, char **out,
				  struct err *err);
