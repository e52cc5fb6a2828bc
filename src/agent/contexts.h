/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contexts: Python sessions beside each other, each with a name, a user and a
 * process of its own (repl.h). The one named "default" always exists; others
 * come and go by CONTEXT requests.
 *
 * A context that is deleted has no name any more at once; its process is
 * killed, and the object lives until that has been buried.
 * Thread: the loop's. fork: a copy has the same contexts, each of which is
 * renewed (renewal.h).
 */
#pragma once

#include "agent/repl.h"
#include "agent/request.h"

#define CONTEXTS_MAX 8

struct agent;
struct stream;

/* Makes the default one, in agent->repl, and the list that it is the first of. */
void contexts_init(struct agent *a, const char *script);
/* NULL when there is none of that name. id == NULL: the default one. */
struct repl *contexts_find(struct agent *a, const char *id);
/* CONTEXT. *r stays the caller's. */
void contexts_request(struct stream *s, const struct request_context *r);
