/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A question to a sandbox's agent that is answered by one frame: JSON there,
 * JSON back, and the client's request answered with it. One stream for each.
 *
 * A client that leaves gives it up: the stream is closed. An agent that does
 * not answer is given as long as a silent command, then the answer is an error
 * and the guest is asked whether it lives.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/agent_failure.h"
#include "daemon/http.h"
#include "daemon/sandbox.h"

struct ask_ops {
	/* The answer came. Answers r; false: it is not what it should be, and r is not answered. */
	bool (*ok)(struct request *r, const json_t *answer);
	/* ERROR came: may say it in other words. NULL: it is fine as it is. */
	void (*refused)(struct agent_failure *why);
	/*
	 * The answer is an EVENT, and the agent goes on behind it: the stream is closed, not
	 * kept for the next.
	 */
	bool goes_on;
};

/* Sends a frame of this type with the object (taken over; NULL: no memory). Answers r in any case.
 */
void ask_agent(struct request *r, struct sandbox *sb, uint8_t type, json_t *object,
	       const struct ask_ops *ops);
/* The same with bytes behind the object, in DATA_IN frames and END_IN; data is taken over. */
void ask_agent_with(struct request *r, struct sandbox *sb, uint8_t type, json_t *object, char *data,
		    size_t len, const struct ask_ops *ops, uint64_t note);
/* For ops->ok(): whom the question was for, and the number that went with it (0: none). */
struct sandbox *ask_sandbox(const struct request *r);
uint64_t ask_note(const struct request *r);
