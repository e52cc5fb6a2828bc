/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A conversation with the agent about a file whose bytes are streamed to or
 * from the client: what the guest does not take is not read from the client,
 * what the client does not take is not read from the guest. A transfer owns one
 * stream to the agent; closing it ends what the agent does for it and removes
 * what it has half written.
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
/* All has been said: the stream may serve the next. */
void transfer_done(struct transfer *t);
/* Releases it, but for what follows it in its object. */
void transfer_end(struct transfer *t);
