/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths as requests give them: absolute, or relative to the directory in
 * which the session r is at this moment (or would start, when it does not run).
 * All look-ups happen with the rights of u, or of the user.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <limits.h>

struct agent;
struct repl;
struct user;

/* Absolute form of `path`; symbolic links and ".." stay as they are. */
__must_check int path_absolute(struct agent *a, const struct repl *r, const char *path,
			       char out[PATH_MAX], struct err *err);
/* Where the session is, or would start; not checked. */
void path_of_session(struct agent *a, const struct repl *r, char out[PATH_MAX]);
/* O_PATH descriptor of a directory: `path`, or the default directory when it is NULL. */
__must_check int path_open_dir(struct agent *a, const struct repl *r, const struct user *u,
			       const char *path, int *fd, struct err *err);
