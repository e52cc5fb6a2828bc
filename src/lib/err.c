/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Formatting of error objects. Stateless; any thread.
 */
#include "lib/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

__attribute__((format(printf, 3, 0))) static void err_vset(struct err *err, int num,
							   const char *fmt, va_list ap)
{
	err->num = num ? num : EINVAL;
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
}

int err_set(struct err *err, int num, const char *fmt, ...)
{
	va_list ap;
	size_t n;

	if (!err)
		return num ? -num : -EINVAL;
	va_start(ap, fmt);
	err_vset(err, num, fmt, ap);
	va_end(ap);
	n = strlen(err->msg);
	snprintf(err->msg + n, sizeof(err->msg) - n, ": %s", strerror(err->num));
	return -err->num;
}

int err_text(struct err *err, int num, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return num ? -num : -EINVAL;
	va_start(ap, fmt);
	err_vset(err, num, fmt, ap);
	va_end(ap);
	return -err->num;
}

int err_prefix(struct err *err, const char *fmt, ...)
{
	char old[sizeof(err->msg)];
	va_list ap;
	size_t n;

	if (!err)
		return -EINVAL;
	memcpy(old, err->msg, sizeof(old));
	va_start(ap, fmt);
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	n = strlen(err->msg);
	snprintf(err->msg + n, sizeof(err->msg) - n, ": %s", old);
	return err->num ? -err->num : -EINVAL;
}
