/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Splits a byte stream into lines of bounded length. A longer line is handed
 * on cut, and its rest is dropped. What is not plain (lib/plain.h), other than tab, is
 * replaced by '?', because the lines come from a machine that runs foreign
 * code and go to a terminal. Not synchronised; fork: plain memory.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define LINES_MAX 2048

struct lines {
	char line[LINES_MAX];
	size_t len;
	bool cut;
};

typedef void lines_fn(void *arg, const char *line);

/* Adds bytes; fn gets every line that is complete, without its newline. */
void lines_feed(struct lines *l, const char *data, size_t len, lines_fn *fn, void *arg);

/* At the end of the stream: a last line without newline, if there is one. */
void lines_end(struct lines *l, lines_fn *fn, void *arg);
