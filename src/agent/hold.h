/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Python sessions with threads, across a FREEZE. A copy's session is renewed by a handler that its
 * main thread runs; but what stands still when the machine is frozen may be another thread, in the
 * middle of the user's code, and that one would go on first, with the states of the original. So
 * before everything is frozen such a session stops itself (SIGSTOP) in a handler that keeps the
 * interpreter's lock, and goes on where it is told to: in a copy with new seeds before any other
 * thread can have the lock, in the original as if nothing had been (guest/repl/still.py).
 *
 * The order is a file, "hold" in run_dir, and a signal; the answer is the stop. A
 * session that is in native code does not come to it within HOLD_LIMIT_NS; then there is none, and
 * docs/fork.md says what that means. Should it stop later, it is told to go on at once.
 *
 * Thread: the loop's. fork: a copy has the session stopped, as its original has.
 */
#pragma once

#include "agent/reap.h"

#include <stdbool.h>

struct agent;
struct repl;

#define HOLD_LIMIT_NS 1000000000ull

/* Tells each session that needs it: whether there is one to wait for. */
bool hold_begin(struct agent *a);
/* Nobody is waited for any more. */
void hold_end(struct agent *a);
/* A session has stopped: reap_child's callback, its owner is the session. */
void hold_on_stopped(struct reap_child *c);
/* Its process has gone. */
void hold_forget(struct repl *r);
/* Lets the session go on, if it stands still, as soon as it is not frozen. */
void hold_release(struct repl *r);
/* Tells its main thread to look at fork.json and the file "hold". 0 or -errno. */
__must_check int hold_signal(const struct repl *r);
/*
 * The same in a copy, where fork.json is new; the session is frozen. One that stands still sees it
 * when it goes on; with reseed it gives its generators new seeds before that. 0 or -errno.
 */
__must_check int hold_renew(struct repl *r, bool reseed);
