/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one call writes to one of its two outputs, when it may be more than the
 * host wants to have: the first half of the limit is passed on as it comes;
 * everything, from the first byte on, goes to a log; when the call has ended,
 * the last bytes of the log, as many as the other half of the limit, are passed
 * on as well. What lies in between is dropped, and counted.
 *
 * The log is held in memory up to 64 KiB, then in a file of the user's
 * (agent->log_dir), with the user's rights: what he does to it is his own
 * loss. It is deleted at the end unless something was dropped, and later, oldest
 * first, when there are more than CAPTURE_KEPT logs or CAPTURE_LOG_MAX bytes of
 * them (but for those of the last call). When it cannot
 * be written, or is 1 GiB long, it stays as it is, and the last 64 KiB are held
 * in memory.
 *
 * Embedded in its output (output.h), which passes on. Thread: the loop's.
 * fork: a copy has the same file on a disk of its own.
 */
#pragma once

#include "lib/buf.h"
#include "lib/list.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct agent;

/* The logs that have been kept, oldest first. */
struct capture_logs {
	struct list list;
	unsigned count;
	uint64_t bytes;
};

#define CAPTURE_MEMORY   ((size_t)64 * 1024)
#define CAPTURE_LOG_MAX  ((uint64_t)1 << 30)
#define CAPTURE_KEPT     64
#define CAPTURE_PATH_MAX 320

struct capture {
	struct agent *agent; /* NULL: captures nothing */
	uint64_t head_left;  /* bytes that may still be passed on as they come */
	uint64_t tail_max;
	uint64_t total; /* bytes that came */
	uint64_t sent;  /* bytes that were passed on */
	struct buf mem; /* the whole log; once it has stopped: the last bytes of the output */
	int fd;         /* the file, -1 = none */
	bool stopped;
	uint64_t tail_at; /* next byte of the tail, counted from the first of the output */
	char path[CAPTURE_PATH_MAX];
};

/* Starts for a new call, with the number that names its log; `name` is "stdout" or "stderr". So
   many bytes are passed on as they come, and at the end. */
void capture_begin(struct capture *c, struct agent *a, unsigned number, const char *name,
		   uint64_t head, uint64_t tail);
/* n bytes came; they were passed on, or not. Not more than head_left of them can be. */
void capture_add(struct capture *c, const uint8_t *p, size_t n, bool passed);
/* Nothing may be passed on before the end any more. */
void capture_end_head(struct capture *c);
/* Nothing will come any more: settles the tail, and writes the log if that is to be kept. */
void capture_finish(struct capture *c);
/* After that: copies the next bytes of the tail, which count as passed on. 0: that was all. */
size_t capture_tail(struct capture *c, uint8_t *p, size_t max);
static inline uint64_t capture_dropped(const struct capture *c)
{
	return c->total - c->sent;
}
/* Whether the log has all of the output. */
bool capture_log_whole(const struct capture *c);
/* Where the log is, NULL when there is none. */
const char *capture_log(const struct capture *c);
/* Releases everything, and deletes the log unless keep. Harmless without a begin. */
void capture_end(struct capture *c, bool keep);
