/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The policy of one sandbox as the proxy reads it (proto/egress.h), in a sealed
 * memfd: what is granted, within what the operator allows.
 * Thread: the loop's. fork: close-on-exec.
 */
#pragma once

#include "lib/err.h"

#include <jansson.h>

struct egress_operator;
struct grant;

/*
 * The descriptor, or -errno with a sentence. ca: {"cert_pem", "key_pem"} that a proxy of this
 * sandbox has made before, or NULL.
 */
int policy_make(const struct egress_operator *o, const char *sandbox, const struct grant *g,
		json_t *ca, struct err *err);
