/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Standard input of a call: what the host sends in STDIN frames goes into a
 * pipe, as fast as the call reads. The host may have FEED_WINDOW bytes on their
 * way; STDIN_ACK tells it how many more have been taken. When nobody can read
 * the pipe any more, bytes are taken and thrown away.
 *
 * The input of a kept command outlives the stream that wrote to it: another one may go on, when the
 * bytes of the one before are taken.
 *
 * Embedded in its job, or in its kept command. Thread: the loop's. fork: in a copy nobody can send
 * any more: a call sees the end of its input, a kept command waits for another writer.
 */
#pragma once

#include "lib/buf.h"
#include "lib/loop.h"

#include <stdbool.h>

#define FEED_WINDOW ((size_t)65536)

struct agent;
struct stream;

struct feed {
	struct agent *agent;   /* NULL: this call has no input */
	struct stream *stream; /* NULL: nobody writes now */
	struct buf buf;        /* not yet in the pipe */
	int fd;                /* write end, -1: not there yet, or not any more */
	struct loop_src src;
	bool connected; /* the pipe has been made */
	bool ended;     /* STDIN_END */
	bool terminal;  /* fd is one: its end is a character */
	uint32_t taken; /* bytes of which the host has not been told */
};

/* The request wants an input. Until then, and for others, f is all zero. */
void feed_init(struct feed *f, struct agent *a, struct stream *s);
/* Makes the pipe: *read_end is the caller's. 0 or -errno. */
__must_check int feed_connect(struct feed *f, int *read_end);
/* The same with a terminal, which stays the caller's. */
__must_check int feed_connect_terminal(struct feed *f, int master);
/* STDIN, STDIN_END. -EPROTO when the host breaks the rules. */
__must_check int feed_put(struct feed *f, const uint8_t *p, size_t len);
__must_check int feed_end(struct feed *f);
/* Another stream writes, or none; what was sent and not taken still goes to the command. */
void feed_set_stream(struct feed *f, struct stream *s);
/* Whether bytes wait for the pipe. */
bool feed_waits(const struct feed *f);
/* Nobody will read any more: bytes are taken and thrown away from now on. */
void feed_hang_up(struct feed *f);
/* The stream has room again. */
void feed_on_room(struct feed *f);
/* The call has ended, or its stream. Harmless when there is no input. */
void feed_close(struct feed *f);
