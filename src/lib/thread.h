/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads beside a loop. Every signal is blocked in them: signals are the loop's.
 * fork: the thread stays behind.
 */
#pragma once

#include <pthread.h>
#include <signal.h>

/* 0, or a positive errno as pthread_create() has it. */
static inline int thread_start(pthread_t *t, void *(*fn)(void *arg), void *arg)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(t, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc;
}
