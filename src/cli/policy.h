/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts of `podflare policy test` that neither ask nor end anything: how words
 * become a request, and an answer lines. No state. fork: nothing.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <jansson.h>
#include <stdio.h>

/*
 * HOST or HOST:PORT into "host" and "port" of body. What a host is made of is the daemon's to
 * judge: somebody may want to know what becomes of 0x7f.1. -EINVAL with a sentence, -ENOMEM.
 */
__must_check int policy_split(json_t *body, const char *target, struct err *err);

/* An entry, JSON when it begins with a brace, behind the others of "allow". Errors as above. */
__must_check int policy_add_entry(json_t *body, const char *text, struct err *err);

/* The lines for the answer to body: 0 allowed, 1 denied, -EPROTO (nothing printed) when it says
 * neither. */
__must_check int policy_print(FILE *out, const json_t *body, const json_t *answer);
