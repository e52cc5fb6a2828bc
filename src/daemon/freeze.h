/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Freezing the user processes of a sandbox and setting them going again. A
 * guest that was frozen and cannot be thawed is of no use to anybody: then the
 * sandbox is ended, with the reason.
 *
 * From freeze_begin() on requests that begin are held back (agent_hold()), up to
 * the thaw. Whoever freezes is a user of the sandbox, and calls freeze_drop()
 * when that ends: no callback comes afterwards.
 *
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/agent_client.h"
#include "lib/loop.h"

#include <stdbool.h>

struct freeze;
struct sandbox;

struct freeze_ops {
	/* Frozen, or failure: a sentence, and everything goes on as before. */
	void (*frozen)(struct freeze *f, const char *failure);
	/* Everything goes on. */
	void (*thawed)(struct freeze *f);
};

struct freeze {
	const struct freeze_ops *ops;
	struct sandbox *sb;
	struct agent_stream *s;
	struct loop_timer timer;
	bool frozen, thawing, again;
	char failure[640]; /* of a FREEZE whose outcome is not known */
};

void freeze_begin(struct freeze *f, struct sandbox *sb, const struct freeze_ops *ops);
/* After frozen() without a failure. */
void freeze_end(struct freeze *f);
/* The sandbox has ended. Harmless at any time. */
void freeze_drop(struct freeze *f);
