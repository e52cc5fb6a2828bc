/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Error objects for slow paths (start-up, boot, API): one sentence that names
 * the object that failed, made where the failure happens. Callers may put a
 * prefix before it. Hot and leaf code returns a bare negative errno instead.
 *
 * Contract: a function that takes `struct err *err` returns 0 or a negative
 * errno; it fills err exactly when it returns negative, and leaves it alone
 * on success. err may be NULL when the caller wants no text.
 *
 * fork: plain memory, no state.
 */
#pragma once

#include <stdarg.h>

struct err {
	int num;       /* positive errno; 0 = no error */
	char msg[512]; /* sentence without full stop */
};

/* Fills err with the sentence and ": <strerror>" when num != 0; returns -num (-EINVAL if 0). */
int err_set(struct err *err, int num, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Fills err with the sentence alone; returns -num. */
int err_text(struct err *err, int num, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the message that is there; returns -err->num. */
int err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
