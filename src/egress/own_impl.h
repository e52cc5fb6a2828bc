/* SPDX-License-Identifier: Apache-2.0 */
/* Between own.c and own_routes.c. Thread: any. fork: plain memory. */
#pragma once

#include "egress/own.h"

#include <stddef.h>
#include <stdint.h>

/* 3 MiB. A host with more does not get a proxy that knows only some of them. */
#define OWN_PREFIXES_MAX 131072u

struct own_prefix {
	int family;
	unsigned int bits;
	uint8_t bytes[16]; /* of the address; of IPv4 the first four */
};

struct own_addrs {
	size_t n, cap;
	struct own_prefix v[];
};

/* Allocates *o, which may be NULL, and fills it, some perhaps twice. 0, -errno; -E2BIG: there are
 * more than OWN_PREFIXES_MAX. */
__must_check int own_learn_routes(struct own_addrs **o);
