/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A conversation with the agent about a file whose bytes are streamed to or
 * from the client: what the guest does not take is not read from the client,
 * what the client does not take is not read from the guest. A transfer owns one
 * stream to the agent; closing it ends what the agent does for it and removes
 * what it has half written.
 *
 * Silence: while the guest is to do something, and not its client, it is asked after
 * PODFLARE_PING_AFTER whether it lives, by a PING on the stream. One that does not answer that
 * either, within PODFLARE_PONG_WITHIN, has failed the transfer; a slow one has not. Time in which
 * it is frozen does not count.
 *
 * The object is the request's state: it ends with transfer_end().
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/agent_failure.h"
#include "daemon/http.h"
#include "daemon/sandbox.h"

struct transfer {
	struct request *r;
	struct sandbox *sb; /* NULL once it has ended */
	struct sandbox_user user;
	struct agent_stream *s; /* NULL once the conversation is over */

	struct loop_timer silence; /* armed: the guest is to do something */
	bool pinged;               /* it has been asked whether it lives */
	uint64_t held_ns;          /* agent_held_ns() when the timer was set */
	size_t unsent;             /* upload: bytes that it had not taken at the last look */

	/* download */
	bool begun;          /* OK came: the reply has begun */
	bool cut, complete;  /* failed after that; END came */
	const uint8_t *data; /* rest of what is there for the client */
	size_t len;
};

/* The parameter `path` of the request, owned by the caller, or NULL: answered. */
char *transfer_path(struct request *r);

/*
 * Opens the conversation with a frame of this type and object (taken over; NULL: no memory). The
 * transfer is the beginning of a zeroed object of size bytes. NULL: answered.
 */
struct transfer *transfer_begin(struct request *r, struct sandbox *sb, uint8_t type, json_t *object,
				size_t size, agent_stream_fn *fn, const struct request_ops *ops);
/* The agent has refused, or failed: an error, or a cut when the reply has begun. */
void transfer_fail(struct transfer *t, const struct agent_failure *why);
/* The stream is lost (negative errno of agent_next(), or -EPROTO). */
void transfer_lost(struct transfer *t, int error);
/* The agent is to say something: from now on its silence has a limit, if it has none yet. */
void transfer_await(struct transfer *t);
/* It has said something, or its client is to take something first: no limit. */
void transfer_heard(struct transfer *t);
/* Of an upload, after what may have changed what is unsent. all: its end has been sent, too. */
void transfer_sends(struct transfer *t, bool all);
/* The conversation is broken off. Harmless the second time. */
void transfer_close(struct transfer *t);
/* All has been said: the stream may serve the next. */
void transfer_done(struct transfer *t);
/* Releases it, but for what follows it in its object. */
void transfer_end(struct transfer *t);
