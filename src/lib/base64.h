/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Base64 (RFC 4648, section 4), in memory of the caller's.
 * Any thread. fork: no state.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BASE64_SIZE(n) (((n) + 2) / 3 * 4)

/* Standard alphabet with padding, no NUL: writes BASE64_SIZE(len) bytes and returns that. */
size_t base64_encode(char *out, const uint8_t *p, size_t len);

/* Strict: padding where it belongs and nothing else. At most len bytes; their number or -EINVAL. */
ssize_t base64_decode(uint8_t *out, const char *p, size_t len);
