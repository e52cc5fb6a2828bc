/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The answer to a fork. Every child has an allowlist of its own in it, of up to 1 MiB: so it is
 * made while it is sent, and the room for that is taken before the sandbox is frozen, so that no
 * fork is made in vain. A child that has ended until it is its turn is an error in its place.
 *
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include "daemon/http.h"

struct fork_reply;
struct grant;
struct sandbox;

/* NULL: answered. grant: what the children will have; NULL: what sb has. */
struct fork_reply *fork_reply_new(struct request *r, const struct sandbox *sb,
				  const struct grant *grant, unsigned int n);
/* Child i: its id, or (NULL) why there is none, which must stay as it is. */
void fork_reply_child(struct fork_reply *f, unsigned int i, const char *id, const char *error);
/* ops: as of pieces_reply(), with fork_reply_pull(). */
void fork_reply_send(struct fork_reply *f, uint64_t pause_us, uint64_t ready_us,
		     const struct request_ops *ops);
ssize_t fork_reply_pull(struct fork_reply *f, char *out, size_t max);
/* Before its request is over. NULL is fine. */
void fork_reply_free(struct fork_reply *f);
