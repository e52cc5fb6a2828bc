/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cells: what happens between an EXEC of the host and its EXIT. repl.c owns
 * the process, repl_ctl.c its control socket; they call these. The functions of
 * cell_end.c stand at the end.
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "agent/repl_ctl.h"
#include "lib/err.h"

/* Starts the first waiting cell if there is one and the REPL is ready. */
void cell_begin_next(struct repl *r);
/* Queues as much of the running cell's code as the control socket's buffer takes. */
void cell_send_code(struct repl *r);
/* Whether some of it is not queued yet. */
bool cell_has_more(const struct repl *r);
enum cell_took {
	CELL_TOOK,
	CELL_NO_ROOM, /* it has to wait for room in the stream */
	CELL_ENDS,    /* it was EXIT: repl_go_on() will be called, or has been */
};
/* The frame of the REPL that was held. */
enum cell_took cell_take_frame(struct repl *r, const struct frame *f);
/* No REPL can be had for the waiting cells. */
void cell_refuse_waiting(struct repl *r, const struct err *err);
void cell_on_busy_timer(void *arg);
/* A notice to its host. */
void cell_notice(struct repl_cell *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void cell_free(struct repl_cell *c);
/* One that waits ends without being run. */
void cell_end_waiting(struct repl_cell *c, enum exec_stop stop);

/* In cell_end.c: */

/* SIGINT to the session and to what the running cell has started. */
void cell_interrupt(struct repl *r);
/* The running cell has to end, by harder and harder means: it is cancelled, or its time is over. */
void cell_must_end(struct repl *r, enum exec_stop stop);
/* Deadline, next step; its end is told; end of a wait. arg: the cell. */
void cell_on_alarm(void *arg);
void cell_on_last(void *arg);
void cell_on_death(void *arg);
/* It wrote more than it may. */
void cell_on_limit(void *arg);
/* EXIT of the REPL has come. */
enum cell_took cell_ends(struct repl *r, int exit_code);
/* The REPL died under the running cell: waits for the end of what that had started, then calls
   repl_last_output(). */
void cell_dies(struct repl *r);
/* Everything that it wrote is delivered: tells its end. */
void cell_died(struct repl *r, const char *why);
