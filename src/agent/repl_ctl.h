/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket of the REPL, and what it and cells need of the process.
 * Failures end the REPL (repl_kill()), and are handled when it is reaped.
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "agent/repl.h"

/* What of r belongs to the socket, while there is no process. */
void repl_ctl_init(struct repl *r);
/* Sends what is queued for the REPL, and waits for what is needed next. */
void repl_update_ctl(struct repl *r);
/* Takes what has come, and, when the process has ended, what is still to come; then buries it. */
void repl_take_frames(struct repl *r);
/* Goes on with frames that were held back. */
void repl_resume(struct repl *r);
/* The cell whose end was held (HELD_END) is finished. */
void repl_go_on(struct repl *r);
/* It is ready: begins what waits, if anything does. */
void repl_begin_next(struct repl *r);
/* After an interrupt: ready when it has answered a PING, for then the interrupt has been used up.
 */
void repl_settle(struct repl *r);

/* In repl.c: */

/* Kills the REPL and all that it started; its end is handled when it is reaped. */
void repl_kill(struct repl *r, const char *fault);
/* The process has ended, and nothing more is expected of its control socket. */
void repl_bury(struct repl *r);
/* Delivers the last output of a process that has ended, then starts a new one. */
void repl_last_output(struct repl *r);
