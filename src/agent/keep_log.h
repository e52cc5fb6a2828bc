/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that a kept command writes to one of its outputs, in a file (log_file.h) that readers read
 * from any offset. Offsets count from the first byte and go on counting when the oldest half of a
 * log that has become KEEP_LOG_MAX long is cut away: the file then begins with a hole.
 *
 * What cannot be written (a full disk) is dropped and counted, and has no offsets; when there is
 * room again, the log goes on.
 *
 * Embedded in its command (kept.h). Thread: the loop's. fork: a copy has a log of its own.
 */
#pragma once

#include "agent/capture.h"

#define KEEP_LOG_MAX ((uint64_t)256 << 20)

struct keep_log {
	struct agent *agent; /* NULL: not begun */
	int fd;              /* -1: could not be made so far */
	bool deleted;        /* it has no name any more, and gets none */
	uint64_t start, end; /* offsets of what is there */
	uint64_t dropped;
	char path[CAPTURE_PATH_MAX];
};

/* `name` is "stdout" or "stderr". */
void keep_log_begin(struct keep_log *l, struct agent *a, const char *id, const char *name);
void keep_log_append(struct keep_log *l, const uint8_t *p, size_t n);
/* Copies from offset `at`, start <= at < end: bytes copied; 0 when the user has destroyed them. */
size_t keep_log_read(const struct keep_log *l, uint64_t at, uint8_t *p, size_t max);
/* Takes its name away; what is in it can be read until the end. */
void keep_log_delete(struct keep_log *l);
/* Harmless without a begin. */
void keep_log_end(struct keep_log *l);
