/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FREEZE and THAW: all processes of the user stand still, and so do the
 * conversations about them, so that a copy of this machine starts from a
 * quiet moment. The agent itself goes on and answers what freeze_allows().
 *
 * Nothing thaws by itself: whoever froze may be gone because this is the copy.
 * After a renewal that failed (renewal.h) there is no way back to running but
 * another renewal.
 *
 * Thread: the loop's. fork: the copy is frozen as the original is.
 */
#pragma once

#include "agent/sweep.h"
#include "lib/err.h"
#include "lib/loop.h"

#include <stdbool.h>
#include <stdint.h>

struct agent;
struct repl;
struct request_thaw;
struct stream;

/*
 * PAYING: Python sessions do the renewals that they owe (renewal.h), so that copies have them.
 * HOLDING: those with threads stop themselves (hold.h). From WAITING on groups are frozen.
 */
enum freeze_state { FREEZE_NONE, FREEZE_PAYING, FREEZE_HOLDING, FREEZE_WAITING, FREEZE_FROZEN };

struct freezer {
	struct agent *agent;
	enum freeze_state state;
	bool must_renew;       /* a renewal has failed: THAW is refused */
	bool lets_on;          /* WAITING: nothing is frozen for a moment (freeze.c) */
	struct stream *stream; /* of the FREEZE that waits */
	unsigned groups;
	struct sweep sweep; /* what is not in them */
	uint64_t since_ns, step_ns, on_ns;
	struct loop_timer timer;
};

void freezer_init(struct freezer *f, struct agent *a);
/* The requests. */
void freeze_begin(struct stream *s);
void freeze_thaw(struct stream *s, const struct request_thaw *r);
/* The session has answered, or has ended: a FREEZE that waits for it goes on, or has failed. */
void freeze_paid(struct freezer *f, struct repl *r, bool ok);
/* The last session that was to stand still does, or has ended. */
void freeze_held(struct freezer *f);
/* Whether a request of this frame type may begin now. */
bool freeze_allows(const struct agent *a, uint8_t type);
/* Thaws every group and wakes streams and timers up. On an error the machine stays frozen. */
__must_check int freezer_thaw(struct freezer *f, struct err *err);
