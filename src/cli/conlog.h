/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Console log of the emulated host: a file that is never longer than
 * CONLOG_MAX (then it becomes FILE.1 and a new one starts), and the last few
 * kilobytes in memory for error messages. Not synchronised.
 * fork: the descriptor is close-on-exec.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <limits.h>
#include <stddef.h>

#define CONLOG_MAX  (1 << 20)
#define CONLOG_TAIL 8192

struct conlog {
	char path[PATH_MAX - 8]; /* "" = memory only */
	int fd;
	size_t size;
	char tail[CONLOG_TAIL]; /* ring: byte i of the stream is at i % CONLOG_TAIL */
	size_t total;
};

/* Starts a log; the file of the last run is kept as FILE.1. path may be NULL. */
__must_check int conlog_open(struct conlog *c, const char *path, struct err *err);

/* A log that cannot be written (disk full) is given up silently; the tail goes on. */
void conlog_write(struct conlog *c, const char *data, size_t len);

/* The last complete lines, at most max of them, into text. */
void conlog_last_lines(const struct conlog *c, unsigned int max, char *text, size_t size);

void conlog_close(struct conlog *c);
