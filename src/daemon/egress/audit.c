/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The audit's file and counters. Invariant: size is the length of the file that fd
 * is open on.
 */
#define _GNU_SOURCE
#include "daemon/egress/audit.h"
#include "daemon/limits.h"
#include "daemon/reserve.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static int open_file(struct audit *a)
{
	struct stat st;
	char last = '\n';

	a->fd = open(a->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (a->fd < 0 || fstat(a->fd, &st) < 0)
		return -errno;
	a->size = (uint64_t)st.st_size;
	/* An earlier daemon may have been cut off in the middle of a line. */
	if (a->size && io_pread_full(a->fd, &last, 1, st.st_size - 1) < 0)
		return -EIO;
	a->torn = last != '\n';
	return 0;
}

int audit_open(struct audit *a, const char *state_dir, struct err *err)
{
	int rc;

	*a = (struct audit){.fd = -1, .max = AUDIT_FILE_MAX};
	if (snprintf(a->path, sizeof(a->path), "%s/egress.jsonl", state_dir) >=
	    (int)sizeof(a->path) - 8)
		return err_text(err, ENAMETOOLONG, "the state directory's name is too long");
	rc = open_file(a);
	return rc < 0 ? err_set(err, -rc, "cannot open %s", a->path) : 0;
}

static void complain(struct audit *a, int error)
{
	uint64_t now = io_now_ns();

	if (a->complained_ns && now - a->complained_ns < 60 * SECOND_NS)
		return;
	a->complained_ns = now;
	log_error("%s cannot be written: %s", a->path, strerror(-error));
}

static int rotate(struct audit *a)
{
	char from[sizeof(a->path) + 16], to[sizeof(a->path) + 16];

	close_fd(&a->fd);
	for (int i = AUDIT_OLD; i > 0; i--) {
		snprintf(to, sizeof(to), "%s.%d", a->path, i);
		if (i > 1)
			snprintf(from, sizeof(from), "%s.%d", a->path, i - 1);
		else
			snprintf(from, sizeof(from), "%s", a->path);
		if (rename(from, to) < 0 && errno != ENOENT)
			return -errno;
	}
	return open_file(a);
}

/*
 * Of a file that could not be opened nothing is known: it is only made way for when it is there,
 * and full. Else each record that comes while none can be opened would cost one that is kept.
 */
static int make_room(struct audit *a, size_t len)
{
	int rc = a->fd < 0 ? open_file(a) : 0;

	if (rc < 0)
		return rc;
	return a->size + a->torn + len + 1 > a->max ? rotate(a) : 0;
}

/* Whether some room was made. Not all that there is: sandboxes choose how many records they cause.
 */
static bool more_room(struct audit *a, int rc)
{
	return (rc == -ENOSPC || rc == -EDQUOT) && a->reserve &&
	       reserve_give(a->reserve, RESERVE_OF_STORE);
}

/* What is left of these when so much was written. */
static unsigned int behind(struct iovec *iov, unsigned int n, size_t done)
{
	unsigned int at = 0;

	while (at < n && done >= iov[at].iov_len)
		done -= iov[at++].iov_len;
	if (at < n) {
		iov[at].iov_base = (char *)iov[at].iov_base + done;
		iov[at].iov_len -= done;
	}
	return at;
}

/* A line, and before it the end of the last one where that is missing. 0 or -errno. */
static int write_line(struct audit *a, const char *text, size_t len)
{
	size_t done = 0, before = a->torn, all = before + len + 1;
	int rc = 0;

	while (rc == 0 && done < all) {
		struct iovec iov[] = {
			{.iov_base = (char *)(uintptr_t) "\n", .iov_len = before},
			{.iov_base = (char *)(uintptr_t)text, .iov_len = len},
			{.iov_base = (char *)(uintptr_t) "\n", .iov_len = 1},
		};
		unsigned int at = behind(iov, ARRAY_SIZE(iov), done);
		ssize_t n = writev(a->fd, iov + at, (int)(ARRAY_SIZE(iov) - at));

		if (n > 0)
			done += (size_t)n;
		else if (n == 0 || errno != EINTR)
			rc = n == 0 ? -ENOSPC : -errno;
		if (rc < 0 && more_room(a, rc))
			rc = 0;
	}
	a->size += done;
	if (done)
		a->torn = done > before && done < all;
	return rc;
}

static int put_line(struct audit *a, const char *text, size_t len)
{
	int rc;

	do
		rc = make_room(a, len);
	while (rc < 0 && more_room(a, rc));
	if (rc < 0)
		close_fd(&a->fd);
	return rc < 0 ? rc : write_line(a, text, len);
}

/* Ahead of what is written next: there may be room again. */
static int tell_lost(struct audit *a)
{
	char text[256], first[IO_TIME_TEXT], last[IO_TIME_TEXT];
	int rc, n;

	if (!a->untold)
		return 0;
	io_time_text(a->lost_ms, first);
	io_time_text(a->last_ms, last);
	n = snprintf(text, sizeof(text),
		     "{\"sandbox\":null,\"type\":\"lost\",\"time\":\"%s\",\"until\":\"%s\","
		     "\"n\":%" PRIu64 "}",
		     first, last, a->untold);
	rc = put_line(a, text, (size_t)n);
	if (rc == 0)
		a->untold = 0;
	return rc;
}

void audit_write(struct audit *a, const char *text, size_t len, uint64_t n)
{
	int rc = tell_lost(a);

	if (rc == 0)
		rc = len ? put_line(a, text, len) : -ENOMEM;
	if (rc == 0)
		return;
	complain(a, rc);
	a->last_ms = (int64_t)(io_realtime_ns() / 1000000);
	if (!a->untold)
		a->lost_ms = a->last_ms;
	a->untold += n;
	a->lost += n;
}

void audit_close(struct audit *a)
{
	int rc = tell_lost(a);

	if (rc < 0)
		complain(a, rc);
	close_fd(&a->fd);
}

void audit_count(struct audit *a, const struct record *r)
{
	if (r->end) {
		a->up = record_sum(a->up, r->up);
		a->down = record_sum(a->down, r->down);
		a->open--;
	} else {
		a->decisions[r->allow][r->allow ? EGRESS_R_NONE : r->reason]++;
		a->open += r->allow;
	}
}

void audit_record(struct audit *a, const struct record *r, const char *text, size_t len)
{
	audit_write(a, text, len, 1);
	audit_count(a, r);
}

void audit_lost(struct audit *a, uint64_t n)
{
	a->open -= n;
}

size_t audit_metrics(const struct audit *a, char *out, size_t size)
{
	int n = snprintf(out, size,
			 "# HELP podflare_egress_decisions_total Decisions about connections and "
			 "requests of sandboxes.\n"
			 "# TYPE podflare_egress_decisions_total counter\n");

	for (int allow = 1; allow >= 0; allow--) {
		for (int r = 0; r < EGRESS_REASONS; r++) {
			/* Of all reasons only those that there were. */
			if (!a->decisions[allow][r] && (!allow || r != EGRESS_R_NONE))
				continue;
			n += snprintf(
				out + n, size - (size_t)n,
				"podflare_egress_decisions_total{verdict=\"%s\",reason=\"%s\"} "
				"%" PRIu64 "\n",
				allow ? "allow" : "deny",
				allow ? "" : egress_reason_text((enum egress_reason)r),
				a->decisions[allow][r]);
		}
	}
	n += snprintf(
		out + n, size - (size_t)n,
		"# HELP podflare_egress_bytes_total Bytes that passed, of what is over; up: "
		"from sandboxes.\n"
		"# TYPE podflare_egress_bytes_total counter\n"
		"podflare_egress_bytes_total{direction=\"up\"} %" PRIu64 "\n"
		"podflare_egress_bytes_total{direction=\"down\"} %" PRIu64 "\n"
		"# HELP podflare_egress_connections What was allowed and is not over.\n"
		"# TYPE podflare_egress_connections gauge\n"
		"podflare_egress_connections %" PRIu64 "\n"
		"# HELP podflare_egress_suppressed_total Records that have no line of their own "
		"in egress.jsonl.\n"
		"# TYPE podflare_egress_suppressed_total counter\n"
		"podflare_egress_suppressed_total %" PRIu64 "\n"
		"# HELP podflare_egress_lost_total Records that could not be written into "
		"egress.jsonl.\n"
		"# TYPE podflare_egress_lost_total counter\n"
		"podflare_egress_lost_total %" PRIu64 "\n",
		a->up, a->down, a->open, a->suppressed, a->lost);
	return (size_t)n;
}
