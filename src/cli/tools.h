/* SPDX-License-Identifier: Apache-2.0 */
/*
 * External programs: finding and running them. Searches PATH and the places
 * for administrators' tools, which an ordinary user's PATH lacks.
 * fork: children exec at once; they are killed when this process dies.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <limits.h>

/* The path of an executable: 0 or -ENOENT. A name with a slash stands for itself. */
__must_check int tools_find(const char *name, char out[PATH_MAX]);

/*
 * Runs argv[0] (a path) and waits at most limit_ms, then kills it. What it
 * prints (stdout and stderr) goes to out, cut to size. Its exit status, or
 * -errno; -ETIMEDOUT when it was killed.
 */
__must_check int tools_run(char *const argv[], int limit_ms, char *out, size_t size);
