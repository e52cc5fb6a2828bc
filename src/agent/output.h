/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stdout and stderr of a process as two pipes that the agent reads, and where
 * their bytes go: to a stream, through a capture each (capture.h), or nowhere.
 *
 * Or all of it goes to two logs (keep_log.h), which never wait for anybody.
 *
 * Back-pressure: while the stream has no room the pipes are not read, so the
 * writer blocks. After output_set_lossy() bytes that find no room are dropped
 * instead: a cancelled command must be able to end though nobody reads.
 * What is not passed on because of the limit does not wait for anybody.
 *
 * End of a command: what it wrote before it ended is in the pipes then.
 * output_drain() delivers exactly that (FIONREAD) and calls back; it never
 * waits for EOF, for children left in the background may hold the pipes for
 * ever. output_end() does so and then passes on the tails. output_abandon() keeps reading and
 * discarding for those, so that they neither block nor die of SIGPIPE.
 *
 * Thread: the loop's. fork: the child gets the write ends, see output_open().
 */
#pragma once

#include "agent/capture.h"
#include "agent/keep_log.h"
#include "lib/cleanup.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct agent;
struct stream;
struct output;

typedef void output_drained_fn(struct output *o);
typedef void output_logged_fn(void *arg);
typedef void output_over_fn(void *arg);

/* What a call may write to each of the two. */
struct output_limit {
	uint64_t bytes;
	output_over_fn
		*over; /* more than that has come; NULL: it may, and head and tail are kept */
	void *arg;
};

struct output_pipe {
	struct loop_src src;
	struct output *out;
	int fd;                 /* read end, -1 after EOF */
	uint8_t type;           /* frame type of its bytes */
	size_t owed;            /* bytes to deliver before the drain is over */
	struct capture capture; /* while there is a sink */
	struct keep_log *log;   /* or all goes there; the owner's */
	bool terminal;          /* fd is the master of one */
};

struct output {
	struct list link; /* in agent->leftovers when abandoned */
	struct agent *agent;
	struct output_pipe pipe[2];
	struct stream *sink; /* NULL: bytes are discarded */
	bool lossy;
	bool ending;   /* the drain is the last one: tails follow */
	bool finished; /* the tails are settled */
	bool hurry;    /* what finds no room in the stream now is dropped, tails as well */
	output_drained_fn *drained; /* set while draining */
	void *arg;
	struct output_limit limit;
	bool over;                /* its owner has been told so */
	output_logged_fn *logged; /* something has come to the logs */
	void *logged_arg;
	char tail[256]; /* what was discarded last on stderr: why a process did not start */
	size_t tail_len;
};

/* New pipes; child_out and child_err are the write ends, the caller's to close. NULL with errno. */
struct output *output_open(struct agent *a, int *child_out, int *child_err);
/* The same with the master of a terminal, which it takes, as its only pipe. */
struct output *output_open_terminal(struct agent *a, int master);
/* That one, -1 when there is none (any more). */
int output_terminal(const struct output *o);
/*
 * Bytes go to the stream from now on, as many of each pipe as the limit says: head and tail; or,
 * for an owner who wants to know when there is more, the first ones. limit->over() is called once,
 * in the middle of things: it may not touch the output. Ends lossy mode.
 */
void output_begin(struct output *o, struct stream *sink, const struct output_limit *limit);
/* Whether there is more, with what is in the pipes now. False for an owner who does not want to
 * know.
 */
bool output_is_over(const struct output *o);
/* Bytes go to these two logs from now on; fn is told after each read, but not during a drain. */
void output_keep(struct output *o, struct keep_log logs[2], output_logged_fn *fn, void *arg);
/* Bytes are discarded from now on; logs of which the host was not told are deleted. */
void output_discard(struct output *o);
void output_set_lossy(struct output *o);
/* Adds "truncated", "bytes_dropped" (with so many more), "log" and "log_truncated" to an EXIT, and
   keeps the logs it names. */
void output_report(struct output *o, json_t *exit, uint64_t more);
/* Throws away what is in the pipes now. */
void output_skip(struct output *o);
/*
 * Calls fn (at once or later) when all that is in the pipes now has been
 * delivered. Nothing more is read then until output_resume(), so that fn can
 * put something between what was written before and after.
 */
void output_drain(struct output *o, output_drained_fn *fn, void *arg);
/* The same at the end of a call: the tails follow what is in the pipes. */
void output_end(struct output *o, output_drained_fn *fn, void *arg);
/* Nobody waits for a slow reader any more: this may end the drain. */
void output_hurry(struct output *o);
/* Goes on reading: the sink has room again, or the drain is over. */
void output_resume(struct output *o);
/* Lets go of it: no callback any more; it reads on until the last writer is gone. NULL is harmless.
 */
void output_abandon(struct output *o);
