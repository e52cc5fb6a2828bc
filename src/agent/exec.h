/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EXEC: collects the code and hands it to the Python session or to a command of
 * its own; and what both have in common: how a call is stopped, and its EXIT.
 *
 * The code lies in a memfd (struct code), not in the agent's heap: it goes on
 * from there in pieces to the REPL, or is given to bash as a file. That of a short
 * cell is not worth one.
 * Thread: the loop's. fork: memfds are close-on-exec.
 */
#pragma once

#include "agent/request.h"

#include <jansson.h>
#include <stdint.h>

/*
 * The host waits for the end of a call for the request's "grace_ms" beyond its deadline. Of the
 * four steps in that time: a call that has to end gets a signal at once, after one step another
 * one, after two SIGKILL; after three its end is told, whatever has not died or was not read by
 * then, and nothing is awaited any more; the fourth is for the way to the host.
 */
#define EXEC_STEPS      4
#define EXEC_TELL_STEPS 3
/* A session that died by itself: what it had started is awaited that long. It cannot take longer
 * but in a broken kernel. */
#define EXEC_DEATH_NS 3000000000ull

struct output;
struct stream;

struct code {
	int fd; /* memfd, owned; -1: it is in text */
	size_t size;
	char *text; /* owned; of cells only, else NULL */
};

void code_free(struct code *c);

/* Why a call does not end by itself. A later word replaces an earlier one only as far as it stands
   further down, and nothing replaces the last three. */
enum exec_stop {
	EXEC_RUNS,
	EXEC_INTERRUPTED, /* asked to end, once */
	EXEC_CANCELLED,   /* made to end */
	EXEC_TIMED_OUT,   /* made to end at its deadline */
	EXEC_OVER_LIMIT,  /* made to end because it wrote too much */
};

static inline uint64_t exec_step_ns(const struct request_exec *r)
{
	return (uint64_t)r->grace_ms * 1000000 / EXEC_STEPS;
}

static inline bool exec_must_end(enum exec_stop stop)
{
	return stop >= EXEC_CANCELLED;
}

/* How a call has ended. */
struct exec_end {
	enum exec_stop stop;
	bool lost;         /* the Python session ended under it */
	bool oom;          /* the kernel killed a process of this call for memory */
	int exit_code;     /* what the process or the cell gave */
	int signal;        /* that ended the process, 0 = none */
	uint64_t start_ns; /* 0 = it has not begun */
	uint64_t end_ns;   /* 0 = now */
	uint64_t dropped;  /* bytes of events that found no room */
};

/* The signal and exit code of a wait status. */
void exec_end_from_wait(struct exec_end *e, int wstatus);
/* What is said when not all had died that had to. */
#define EXEC_UNDEAD                                                                           \
	"Not all processes of this call had died when it had to be answered; they have been " \
	"killed."
/* Payload of EXIT. The output's part is reported once; NULL when nothing was run. */
json_t *exec_exit_object(const struct exec_end *e, struct output *o);

/* Starts to collect the code of the request. Takes what *r owns. */
void exec_begin(struct stream *s, struct request_exec *r);
