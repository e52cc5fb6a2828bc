/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UTF-8 checks and JSON string escaping for bytes that a guest wrote.
 * Pure functions over memory; any thread. fork: no state.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Looks at the sequence at p (len >= 1): its length when it is valid, 0 when
 * all len bytes are the beginning of a valid one, or the negative number of
 * bytes that a decoder replaces by one U+FFFD (the maximal subpart).
 */
int utf8_step(const uint8_t *p, size_t len);

bool utf8_valid(const uint8_t *p, size_t len);

/*
 * Length of the longest prefix that is valid UTF-8. *bad tells why it ends
 * before len: true = ill-formed bytes follow, false = an unfinished sequence.
 */
size_t utf8_prefix(const uint8_t *p, size_t len, bool *bad);

/* Room that json_escape() may need for one byte of input. */
#define JSON_ESCAPE_MAX 6u

/*
 * Writes p as the inside of a JSON string; ill-formed UTF-8 (an unfinished
 * sequence at the end included) becomes U+FFFD. Returns the bytes written,
 * at most JSON_ESCAPE_MAX * len.
 */
size_t json_escape(char *out, const uint8_t *p, size_t len);
