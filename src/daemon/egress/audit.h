/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file of the audit: every record of every sandbox as a line of JSON in
 * STATE/egress.jsonl (0600), as far as its share goes (audit_share.h). At AUDIT_FILE_MAX it becomes
 * egress.jsonl.1, that one egress.jsonl.2 and so on; AUDIT_OLD of them are kept. And what is
 * counted for the metrics.
 *
 * A file that cannot be written stops nobody: that is logged, once a minute at most. On a full
 * disk some of the reserve is for it (reserve.h). What is not written is counted, and said in a
 * line as soon as one can be written:
 *   {"sandbox":null,"type":"lost","time":T,"until":T,"n":N}
 * N records, the first and the last of them lost then. One that was cut off is among them.
 * Thread: the loop's (a write into the page cache). fork: close-on-exec.
 */
#pragma once

#include "daemon/egress/record.h"
#include "lib/err.h"

#define AUDIT_FILE_MAX (64u << 20)
#define AUDIT_OLD      4

struct reserve;

struct audit {
	char path[4096];
	int fd;
	uint64_t size, max;
	uint64_t complained_ns;
	bool torn;               /* the last line has no end */
	struct reserve *reserve; /* NULL: none */

	uint64_t untold;          /* lost, and not yet said in the file */
	int64_t lost_ms, last_ms; /* the first and the last of these */

	uint64_t decisions[2][EGRESS_REASONS]; /* by allow, reason */
	uint64_t up, down;
	uint64_t open;       /* allowed and not over */
	uint64_t suppressed; /* records that stand in another's line */
	uint64_t lost;       /* records that are not in the file */
};

int audit_open(struct audit *a, const char *state_dir, struct err *err);
/* Says what was lost, if it can. */
void audit_close(struct audit *a);

/* text: r->json as text. */
void audit_record(struct audit *a, const struct record *r, const char *text, size_t len);
/* Both halves of it. The text stands for n records; len 0: there was no memory for it. */
void audit_count(struct audit *a, const struct record *r);
void audit_write(struct audit *a, const char *text, size_t len, uint64_t n);
/* A proxy has ended with n decisions that were not over. */
void audit_lost(struct audit *a, uint64_t n);

/* The lines of the metrics, into out: bytes written. */
size_t audit_metrics(const struct audit *a, char *out, size_t size);
/* Room that these need at most. */
#define AUDIT_METRICS_MAX 16384u
