/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pseudo-terminals. The master is the agent's; the other end becomes the controlling terminal of
 * the process that is started on it (spawn.h), and belongs to its user.
 * Thread: the loop's. fork: descriptors are close-on-exec.
 */
#pragma once

#include "agent/request.h"
#include "agent/user.h"

/* Both ends, the caller's; the master does not block. 0 or -errno. */
__must_check int terminal_open(const struct user *u, const struct terminal_size *size, int *master,
			       int *slave);
/* Who runs in its foreground gets SIGWINCH when that is a change. */
void terminal_resize(int master, const struct terminal_size *size);
