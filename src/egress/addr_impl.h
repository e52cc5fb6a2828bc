/* SPDX-License-Identifier: Apache-2.0 */
/* Between addr.c and addr_ranges.c. Thread: any. fork: no state. */
#pragma once

#include "egress/addr.h"

#include <netinet/in.h>
#include <stdbool.h>

/* A range in network byte order. IPv4: the first four bytes. */
struct addr_range {
	uint8_t bytes[16];
	uint8_t bits;
	bool v6;
};

/* Whether the first bits of two addresses are the same. */
bool addr_bits_equal(const uint8_t *a, const uint8_t *b, unsigned bits);

/* The narrowest range that holds the address and has at least min_bits; or NULL. */
const struct addr_range *egress_ranges_find(const struct egress_ranges *r, bool v6,
					    const uint8_t *bytes, unsigned min_bits);

#define ADDR_RANGE_TEXT_MAX (INET6_ADDRSTRLEN + 4u)
void addr_range_text(const struct addr_range *r, char out[ADDR_RANGE_TEXT_MAX]);
