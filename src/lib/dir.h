/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading directories. readdir() says the same at the end and when it has failed,
 * and who takes the one for the other knows only some of the names.
 * Stateless. fork: no state.
 */
#pragma once

#include <dirent.h>
#include <errno.h>

/* The next entry; NULL at the end, or with -errno in *rc, which is else left alone. */
static inline struct dirent *dir_next(DIR *d, int *rc)
{
	struct dirent *e;

	errno = 0;
	e = readdir(d);
	if (!e && errno)
		*rc = -errno;
	return e;
}
