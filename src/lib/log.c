/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines. The settings are file-level state that is written before any thread
 * exists and only read afterwards; so is the number of lost lines, which is atomic.
 */
#define _GNU_SOURCE
#include "lib/log.h"
#include "lib/io.h"
#include "lib/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_LINE_MAX 4096

static enum log_format log_format = LOG_TEXT;
static enum log_level log_min = LOG_INFO;
static enum { LOG_WAITS, LOG_ASKS, LOG_OWN_FILE, LOG_SOCKET } log_way;
static int log_fd = 2;
static atomic_ulong log_lost; /* lines since the last that was written */
static atomic_bool log_torn;  /* of the last one only a part was written */

void log_init(enum log_format format, enum log_level min_level)
{
	log_format = format;
	log_min = min_level;
}

void log_never_wait(void)
{
	struct stat st;
	int fd;

	log_way = LOG_ASKS;
	log_fd = 2;
	if (fstat(2, &st) < 0)
		return;
	if (S_ISSOCK(st.st_mode)) {
		log_way = LOG_SOCKET;
	} else if (S_ISFIFO(st.st_mode) || isatty(2)) {
		/*
		 * An open file of our own: O_NONBLOCK would be everybody's who has the same one,
		 * the operator's shell for one.
		 */
		fd = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		if (fd < 0)
			return;
		log_fd = fd;
		log_way = LOG_OWN_FILE;
	}
}

struct line {
	char buf[LOG_LINE_MAX];
	size_t len;
};

static void line_add(struct line *l, const char *s, size_t n)
{
	/* One byte is kept for the newline; a longer line is cut, never split. */
	if (n > sizeof(l->buf) - 1 - l->len)
		n = sizeof(l->buf) - 1 - l->len;
	memcpy(l->buf + l->len, s, n);
	l->len += n;
}

static void line_str(struct line *l, const char *s)
{
	line_add(l, s, strlen(s));
}

/* A character of several bytes, or what is none. Returns how many bytes were taken. */
static size_t line_wide(struct line *l, const uint8_t *p, size_t len)
{
	int n = utf8_step(p, len);
	char e[8];

	if (n <= 0) {
		line_str(l, "\\ufffd");
		return n < 0 ? (size_t)-n : len;
	}
	if (n == 2 && p[0] == 0xc2 && p[1] < 0xa0) { /* controls to some terminals */
		snprintf(e, sizeof(e), "\\u%04x", p[1]);
		line_str(l, e);
	} else if ((size_t)n <= sizeof(l->buf) - 1 - l->len) {
		line_add(l, (const char *)p, (size_t)n);
	}
	return (size_t)n;
}

/* Escapes as JSON does; good for both formats. Parts may be a client's, and of any bytes. */
static void line_escaped(struct line *l, const char *s)
{
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;
		char e[8];

		if (c >= 0x80) {
			s += line_wide(l, (const uint8_t *)s, strlen(s)) - 1;
			continue;
		}
		if (c == '"' || c == '\\')
			snprintf(e, sizeof(e), "\\%c", c);
		else if (c == '\n')
			snprintf(e, sizeof(e), "\\n");
		else if (c < 0x20 || c == 0x7f)
			snprintf(e, sizeof(e), "\\u%04x", c);
		else
			snprintf(e, sizeof(e), "%c", c);
		line_str(l, e);
	}
}

static void line_time(struct line *l)
{
	char t[IO_TIME_TEXT];

	io_time_text((int64_t)(io_realtime_ns() / 1000000), t);
	line_str(l, t);
}

static void line_field(struct line *l, const struct log_field *f, bool json)
{
	char num[32];

	line_str(l, json ? ",\"" : " ");
	line_str(l, f->key);
	line_str(l, json ? "\":" : "=");
	if (!f->str) {
		snprintf(num, sizeof(num), "%lld", (long long)f->num);
		line_str(l, num);
		return;
	}
	if (json || f->str[0] == '\0' || strpbrk(f->str, " \t\n\"\\=")) {
		line_str(l, "\"");
		line_escaped(l, f->str);
		line_str(l, "\"");
	} else {
		line_escaped(l, f->str);
	}
}

static void line_make(struct line *l, enum log_level level, const char *msg,
		      const struct log_field *f, size_t nf)
{
	static const char *const names[] = {"DEBUG", "INFO", "WARN", "ERROR"};
	bool json = log_format == LOG_JSON;

	l->len = 0;
	line_str(l, json ? "{\"timestamp\":\"" : "");
	line_time(l);
	line_str(l, json ? "\",\"level\":\"" : " ");
	line_str(l, names[level]);
	line_str(l, json ? "\",\"message\":\"" : " ");
	line_escaped(l, msg);
	line_str(l, json ? "\"" : "");
	for (size_t i = 0; i < nf; i++)
		line_field(l, &f[i], json);
	if (json)
		line_str(l, "}");
	l->buf[l->len++] = '\n';
}

/*
 * A pipe takes a line at once when it says that there is room: a line is no longer than PIPE_BUF.
 * To a terminal room is a byte, so that what could not be opened anew may be waited for.
 */
static bool line_has_room(void)
{
	struct pollfd p = {.fd = 2, .events = POLLOUT};

	_Static_assert(LOG_LINE_MAX <= PIPE_BUF, "it takes it whole");
	return poll(&p, 1, 0) != 0;
}

/* As much as there is room for: how much that was. A full disk may take a part, too. */
static size_t line_put(const char *data, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = log_way == LOG_SOCKET
				    ? send(2, data + done, len - done, MSG_DONTWAIT | MSG_NOSIGNAL)
				    : write(log_fd, data + done, len - done);

		if (n > 0)
			done += (size_t)n;
		else if (n == 0 || errno != EINTR)
			break;
	}
	return done;
}

/* False: it is lost. stderr may be closed or full: that is not an error of the caller. */
static bool line_write(const struct line *l)
{
	size_t n;

	if (log_way != LOG_WAITS && !line_has_room())
		return false;
	if (atomic_load_explicit(&log_torn, memory_order_relaxed) && line_put("\n", 1) != 1)
		return false;
	n = line_put(l->buf, l->len);
	atomic_store_explicit(&log_torn, n > 0 && n < l->len, memory_order_relaxed);
	return n == l->len;
}

static void line_lost(unsigned long n)
{
	atomic_fetch_add_explicit(&log_lost, n, memory_order_relaxed);
}

void log_event(enum log_level level, const char *msg, const struct log_field *f, size_t nf)
{
	unsigned long lost;
	struct line l;

	if (level < log_min)
		return;
	lost = atomic_exchange_explicit(&log_lost, 0, memory_order_relaxed);
	if (lost) {
		const struct log_field count[] = {LOG_NUM("lines", lost)};

		line_make(&l, LOG_WARN,
			  "lines of the log were lost: nobody read it, or its disk was full", count,
			  1);
		if (!line_write(&l)) {
			line_lost(lost + 1);
			return;
		}
	}
	line_make(&l, level, msg, f, nf);
	if (!line_write(&l))
		line_lost(1);
}

void log_line(enum log_level level, const char *fmt, ...)
{
	char msg[2048];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	log_event(level, msg, NULL, 0);
}
