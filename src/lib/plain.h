/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text that somebody else wrote, UTF-8 at best, made fit to be shown: what a terminal could take
 * for a command, a reader for the end of a line, or what turns the direction of what stands beside
 * it, is replaced. That is: U+0000 to U+001F, U+007F to U+009F, U+2028, U+2029, the marks,
 * embeddings, overrides and isolates of direction (U+061C, U+200E, U+200F, U+202A to U+202E, U+2066
 * to U+2069), and bytes that are no UTF-8.
 * Pure functions over memory; any thread. fork: no state.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the character, or of what is none, at p (len >= 1); *plain: it may be shown. */
size_t plain_step(const uint8_t *p, size_t len, bool *plain);

/* In place: each such character becomes `instead`, but for the bytes in keep. */
void plain_text(char *s, char instead, const char *keep);
