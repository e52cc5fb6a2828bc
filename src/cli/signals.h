/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SIGINT, SIGTERM and SIGHUP as events of the loop. SIGPIPE is ignored: a
 * reader of our output that goes away must not take the emulated host along.
 * fork: children that exec must reset the signal mask (they do, see qemu.c).
 */
#pragma once

#include "lib/err.h"
#include "lib/loop.h"

struct signals {
	struct loop_src src;
	int fd;
	unsigned int count; /* how often one came */
	int last;
	void (*fn)(struct signals *s);
	void *arg;
};

/* fn and arg are set by the caller before. */
__must_check int signals_start(struct signals *s, struct loop *l, struct err *err);
void signals_stop(struct signals *s);
