/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ERROR frames of an agent as answers of the API. The agent is not trusted:
 * an unknown code or a broken frame becomes a plain 502.
 * Pure; any thread. fork: no state.
 */
#pragma once

#include "proto/frame.h"

#include <stdbool.h>
#include <stddef.h>

struct agent_failure {
	const char *word; /* the agent's, when it is a known one, or NULL */
	unsigned int status;
	const char *code;  /* stable word of the API */
	const char *field; /* of the request, or NULL */
	char message[512]; /* plain (lib/plain.h) */
};

void agent_failure_parse(const struct frame *f, struct agent_failure *out);
/* A sentence of the agent's, made plain. */
void agent_failure_text(char *out, size_t len, const char *text);
/* Whether the agent has said this word. */
bool agent_failure_is(const struct agent_failure *why, const char *word);
/* Refusal of an EXEC of this language: what it names is a member of the exec, not a file. */
void agent_failure_of_exec(struct agent_failure *why, const char *language);
