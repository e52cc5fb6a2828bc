/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VMM's end of the control socket: turns messages of the daemon into calls
 * on the machine and events of the machine into messages.
 *
 * Thread: loop thread only. fork: the child gets a socket of its own.
 */
#pragma once

#include "lib/loop.h"
#include "vmm/core/machine.h"

struct ctl {
	struct loop *loop;
	struct loop_src src;
	int fd;
	struct machine machine;
	bool booted;
};

void ctl_init(struct ctl *c, struct loop *loop, int fd);

/* Serves fd until the daemon closes it or the machine ends; does not return while it lives. */
__must_check int ctl_run(struct ctl *c);
