/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest says of its files: one entry, and a list of them as lines, which
 * become one JSON text piece by piece.
 *
 * Bounded: at most LIMIT_CHANGES entries, LIMIT_ENTRY_LINE bytes in each. Not
 * synchronised. fork: plain memory.
 */
#pragma once

#include "lib/buf.h"

#include <jansson.h>
#include <stdint.h>

/* The object of the API of an agent's, checked. New reference; NULL: it is not one, or no memory.
 */
json_t *file_entry_json(const json_t *o);

struct file_list {
	struct buf line; /* the beginning of one */
	struct buf out;  /* JSON for the client; to be consumed by the caller */
	size_t n;
};

void file_list_init(struct file_list *l);
void file_list_free(struct file_list *l);
/* Bytes of the agent (one frame at most, and what came before was consumed): 0, -EPROTO, -ENOMEM.
 */
__must_check int file_list_feed(struct file_list *l, const uint8_t *p, size_t len);
/* There are no more: the end of the text. The same. */
__must_check int file_list_end(struct file_list *l);
