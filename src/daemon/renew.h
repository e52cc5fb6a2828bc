/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RENEW: what makes a VM unique after a boot or a fork (clock, name, randomness,
 * ids). Until the agent has answered it with OK no user code runs in a child.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/agent_client.h"
#include "lib/base64.h"
#include "lib/cleanup.h"

#include <stdbool.h>
#include <stdint.h>

struct renew {
	const char *id;   /* of the sandbox */
	const char *kind; /* "boot", "create", "fork" */
	uint32_t generation;
	bool reseed;        /* generators of user space too */
	const char *egress; /* JSON text of the member, or NULL: none, which is off */
};

#define RENEW_ENTROPY 32

/* As many fresh bytes for a guest's kernel, in base64, without a NUL at the end. 0, -EIO. The
 * caller wipes it. */
__must_check int renew_entropy(char base64[BASE64_SIZE(RENEW_ENTROPY)]);
/* Writes the request into the stream, which may not have reached the guest yet. 0, -EIO, -ENOMEM.
 */
__must_check int renew_send(struct agent_stream *s, const struct renew *r);
