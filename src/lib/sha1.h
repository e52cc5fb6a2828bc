/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-1 (RFC 3174) of a short text. Only for the handshake of RFC 6455, which
 * asks for it and does not rely on its strength: nothing else may use it.
 * Pure function; any thread. fork: no state.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SHA1_LEN 20u
/* Longest input. */
#define SHA1_INPUT_MAX 119u

/* The digest of len <= SHA1_INPUT_MAX bytes at p (more is a bug of the caller). */
void sha1(uint8_t out[SHA1_LEN], const void *p, size_t len);
