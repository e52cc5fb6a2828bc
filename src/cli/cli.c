/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Helpers of all verbs: messages in one form, numbers in options. No state.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static void say(const char *fmt, va_list ap) __attribute__((format(printf, 1, 0)));
static void say(const char *fmt, va_list ap)
{
	fputs("podflare: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
}

void cli_say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(fmt, ap);
	va_end(ap);
}

int cli_usage_error(const char *verb, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(fmt, ap);
	va_end(ap);
	fprintf(stderr, "See: podflare %s --help\n", verb);
	return CLI_USAGE;
}

int cli_parse_number(const char *option, const char *text, uint64_t min, uint64_t max,
		     uint64_t *out, struct err *err)
{
	bool digits = isdigit((unsigned char)text[0]) != 0;
	char *end = NULL;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (!digits || *end || errno || value < min || value > max)
		return err_text(err, EINVAL,
				"%s needs a whole number from %" PRIu64 " to %" PRIu64 ", not '%s'",
				option, min, max, text);
	*out = value;
	return 0;
}
