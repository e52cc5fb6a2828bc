/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies a stream of the emulated host to a descriptor of ours, at the pace
 * of its reader: what cannot be written now stops the reading, never the
 * loop. Ends at end of file of the source; a destination that is gone or
 * broken makes it discard the rest. One whose disk is full makes it discard what
 * comes meanwhile, up to the end of a line: what comes later begins with a line.
 *
 * Thread: the loop's. fork: none may be made while a relay exists except to exec.
 */
#pragma once

#include "lib/loop.h"

#define RELAY_CHUNK 4096 /* a pipe that polls writable takes this much without blocking */

struct relay {
	struct loop *loop;
	struct loop_src in;  /* in the loop while the chunk is empty */
	struct loop_src out; /* in the loop while the chunk waits for its reader */
	int src, dst;
	bool discard;
	bool open;                  /* what was written last is not the end of a line */
	bool dropped;               /* something, since then */
	bool skip;                  /* and the end of its line is still to come */
	char data[1 + RELAY_CHUNK]; /* the first one: for an end of line that was dropped */
	size_t start, len;
	void (*done)(struct relay *r); /* called once, at the end of the source */
	void *arg;
};

/* src is non-blocking and stays the caller's, as dst does. 0 or -errno. */
__must_check int relay_start(struct relay *r, struct loop *l, int src, int dst);

void relay_stop(struct relay *r);
