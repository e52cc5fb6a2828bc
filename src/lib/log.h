/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines on stderr: text ("2026-11-24T03:04:05.678Z INFO message key=value")
 * or one JSON object per line. A failure is logged once, by the level that
 * decides. Fields make a line machine-readable without a parser for prose.
 *
 * log_init() sets format and level once at start, before threads; the VMM does
 * not call it and never logs after start. Each line is one write(2).
 * fork: the child inherits the settings; nothing is buffered.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum log_format { LOG_TEXT, LOG_JSON };

/* A field of a line: a string (str != NULL) or a number. */
struct log_field {
	const char *key;
	const char *str;
	int64_t num;
};

#define LOG_STR(k, v) ((struct log_field){.key = (k), .str = (v) ? (v) : ""})
#define LOG_NUM(k, v) ((struct log_field){.key = (k), .num = (int64_t)(v)})

void log_init(enum log_format format, enum log_level min_level);
/*
 * Once at start, as log_init(): a line for which there is no room (a pipe that nobody reads, a
 * terminal that was stopped) is lost instead of waited for. When there is room again, the number of
 * those is a line of its own, as is that of lines that a full disk did not take or cut off. Pipes
 * and terminals are opened anew for that, so that who else has them does not get O_NONBLOCK; where
 * that is not allowed, a terminal may be waited for.
 */
void log_never_wait(void);

/* Message with fields; control characters and quotes in values are escaped. */
void log_event(enum log_level level, const char *msg, const struct log_field *f, size_t nf);

/* Plain sentence. */
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
