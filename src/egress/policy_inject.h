/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "inject" of a policy: headers that are added to requests to a host. Names are
 * tokens, values have no control characters; what frames a message, names its
 * host or belongs to one hop cannot be injected.
 *
 * Sentences never hold a value. Thread: any.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <jansson.h>
#include <stdbool.h>

#define INJECT_HOSTS_MAX   256u
#define INJECT_HEADERS_MAX 32u
#define INJECT_NAME_MAX    128u
#define INJECT_VALUE_MAX   16384u

/* *out: normal form of the host -> {"headers": {...}, "intercept": bool}. 0, or -EINVAL, -ENOMEM.
 */
__must_check int policy_inject_parse(json_t **out, bool *intercepts, const json_t *v,
				     struct err *err);
