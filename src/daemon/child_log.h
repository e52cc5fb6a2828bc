/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What VMMs and egress proxies write to their stderr: their own sentences, and
 * those of libraries and sanitizers that end them. It is a pipe to the daemon,
 * which takes lines from it as something that a stranger says: cleaned, in pieces of
 * CHILD_LOG_LINE bytes, at most CHILD_LOG_BURST at once and one a second after
 * that. A program that its guest has taken over could otherwise write lines in
 * the daemon's name, or over the log where that is a file. Which of them wrote
 * a line is not known: the pipe is one for all of them.
 *
 * The end that they have does not block: what the daemon does not take is lost.
 *
 * Thread: the loop's. fork: both ends are close-on-exec; child.h gives one away.
 */
#pragma once

#include "lib/err.h"
#include "lib/loop.h"

#include <stddef.h>

#define CHILD_LOG_LINE  400u
#define CHILD_LOG_BURST 100u

struct child_log {
	struct loop *loop;
	struct loop_src src;
	struct loop_timer more; /* when another line may be taken */
	int write_fd;           /* for child_spawn(); -1: none */
	unsigned int lines;     /* that may be taken now */
	uint64_t at_ns;         /* when that was counted */
	char data[1024];        /* read and not looked at: from at up to n */
	size_t at, n;
	char line[CHILD_LOG_LINE + 1];
	size_t len;
};

/* Of one that is all zero. 0, or -errno with a sentence. */
__must_check int child_log_start(struct child_log *c, struct loop *l, struct err *err);
/* Takes what is there, as far as that may be, and closes both ends. Harmless when none was started.
 */
void child_log_stop(struct child_log *c);
