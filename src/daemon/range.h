/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header Range of a download. Pure; any thread. fork: no state.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct range {
	bool given;
	int64_t first, last; /* bytes, both included; last INT64_MAX: to the end */
};

/*
 * "bytes=A-B" or "bytes=A-". Whatever else there may be (several ranges, the last
 * N bytes, other units, nonsense, NULL) is not given: the answer is the whole
 * file, as RFC 9110 allows and for some of these demands.
 */
struct range range_parse(const char *value);
