/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cleanup attributes: a local marked with one of these releases what it holds
 * when it goes out of scope. Ownership is handed on with take_fd()/take_ptr(),
 * which leave -1/NULL behind.
 *
 * fork: nothing here holds state.
 */
#pragma once

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_fd_func(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void cleanup_free_func(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_unlock_func(pthread_mutex_t **m)
{
	if (*m)
		pthread_mutex_unlock(*m);
}

#define _cleanup_(f)    __attribute__((cleanup(f)))
#define _cleanup_fd     _cleanup_(cleanup_fd_func)
#define _cleanup_free   _cleanup_(cleanup_free_func)
#define _cleanup_unlock _cleanup_(cleanup_unlock_func)

#define __must_check  __attribute__((warn_unused_result))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* Hands the descriptor over to the caller; the variable no longer owns it. */
static inline int take_fd(int *fd)
{
	int r = *fd;

	*fd = -1;
	return r;
}

/* Hands the pointer over to the caller; the variable no longer owns it. */
#define take_ptr(p)                              \
	({                                       \
		__typeof__(p) *take_pp = &(p);   \
		__typeof__(p) take_v = *take_pp; \
		*take_pp = NULL;                 \
		take_v;                          \
	})

/* close() that tolerates -1 and leaves -1 behind. */
static inline void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}
