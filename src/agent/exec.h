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

/* A call that has to end gets a signal, after one step another one, and after two SIGKILL. */
#define EXEC_DEADLINE_STEP_NS 500000000ull
#define EXEC_CANCEL_STEP_NS   1000000000ull
/* What was killed is awaited that long; it cannot take longer but in a broken kernel. */
#define EXEC_DEATH_NS 3000000000ull
/* And so long the host may take to read the last output of a call that had to end. */
#define EXEC_TAIL_NS 2000000000ull

struct output;
struct stream;

struct code {
	int fd; /* memfd, owned; -1: it is in text */
	size_t size;
	char *text; /* owned; of cells only, else NULL */
};

void code_free(struct code *c);

/* Why a call does not end by itself. A later word replaces an earlier one only as far as it stands
   further down, and nothing replaces the last two. */
enum exec_stop {
	EXEC_RUNS,
	EXEC_INTERRUPTED, /* asked to end, once */
	EXEC_CANCELLED,   /* made to end */
	EXEC_TIMED_OUT,   /* made to end at its deadline */
};

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
};

/* The signal and exit code of a wait status. */
void exec_end_from_wait(struct exec_end *e, int wstatus);
/* Payload of EXIT. The output's part is reported once; NULL when nothing was run. */
json_t *exec_exit_object(const struct exec_end *e, struct output *o);

/* Starts to collect the code of the request. Takes what *r owns. */
void exec_begin(struct stream *s, struct request_exec *r);
