/* SPDX-License-Identifier: Apache-2.0 */
/*
 * WARM: the host wants the Python session to have loaded everything before it
 * makes a template of the machine. One request at a time; cells that come
 * meanwhile wait. repl.c owns the process and calls these.
 * Thread: the loop's. fork: a job on a stream; a template forks when it has ended.
 */
#pragma once

#include "agent/repl.h"
#include "lib/err.h"

/* Sends WARM to a REPL that is ready, if somebody waits for it; else false. */
bool warm_begin(struct repl *r);
/* OK or ERROR of the REPL, in state REPL_WARMING. */
void warm_done(struct repl *r, const struct frame *f);
/* No answer will come. */
void warm_refuse(struct repl *r, const struct err *err);
