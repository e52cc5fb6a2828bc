/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the parts of an installation are: beside the `podflare` program
 * (the build directory), or in ../lib/podflare from it (an installed tree).
 * Nothing here opens or makes anything except paths_make_state().
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <limits.h>
#include <stdbool.h>

struct paths {
	char base[PATH_MAX]; /* holds the other programs, groups.json, guest/ and box/ */
};

/* Finds the installation of the running program. */
__must_check int paths_find(struct paths *p, struct err *err);

/* base/name into out; -ENAMETOOLONG when it does not fit. */
__must_check int paths_join(const struct paths *p, const char *name, char out[PATH_MAX]);

/* 0 when every file that mode needs is there; else an error that names it and says "run make". */
__must_check int paths_check(const struct paths *p, bool box, struct err *err);

/* guest/template.py: beside the build directory, or where guest/source in it leads. */
__must_check int paths_template_script(const struct paths *p, char out[PATH_MAX], struct err *err);

/* The state directory when none is given: $PODFLARE_STATE, $XDG_STATE_HOME or ~/.local/state. */
__must_check int paths_default_state(char out[PATH_MAX], struct err *err);

/* Makes the directory with its parents, private to the user. One that is there must be his alone.
 */
__must_check int paths_make_state(const char *dir, struct err *err);
