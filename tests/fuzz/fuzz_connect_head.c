/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head of a CONNECT: what is accepted is so as soon as it is whole and not
 * before, says the same without what comes behind it, and could not be read in
 * another way.
 */
#include "input.h"

#include "egress/connect_head.h"

#include <errno.h>

static ssize_t parse(const uint8_t *data, size_t len, struct connect_head *h)
{
	char *copy = malloc(len ? len : 1); /* so that a read beyond its end is seen */
	ssize_t n;

	if (len)
		memcpy(copy, data, len);
	n = connect_head_parse(copy, len, h);
	free(copy);
	return n;
}

/* A refusal of a part is one of the whole: more bytes do not heal. */
static void check_parts(const uint8_t *data, size_t size, ssize_t whole)
{
	struct connect_head h;

	for (size_t i = 0; i < size && i < 300; i++) {
		ssize_t n = parse(data, i, &h);

		MUST(n <= 0 || n == whole);
		MUST(n >= 0 || whole < 0);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct connect_head h, again;
	ssize_t n = parse(data, size, &h);

	MUST(n <= (ssize_t)size && n <= (ssize_t)CONNECT_HEAD_MAX);
	MUST(n != 0 || size < CONNECT_HEAD_MAX);
	check_parts(data, size, n);
	if (n < 0) {
		MUST(n == -EBADMSG && h.why && h.reason != EGRESS_R_NONE);
		MUST(memchr(h.host, '\0', sizeof(h.host)));
		return 0;
	}
	if (n == 0)
		return 0;
	MUST(memcmp(data, "CONNECT ", 8) == 0 && memcmp(data + n - 4, "\r\n\r\n", 4) == 0);
	MUST(parse(data, (size_t)n, &again) == n && again.port == h.port);
	MUST(strcmp(again.host, h.host) == 0);
	MUST(h.host[0] && h.port);
	MUST(memcmp(data + 8, h.host, strlen(h.host)) == 0 && data[8 + strlen(h.host)] == ':');
	for (const char *p = h.host; *p; p++)
		MUST(*p > ' ' && *p < 0x7f && !strchr("@/?#\\", *p));
	for (ssize_t i = 0; i < n; i++)
		MUST(data[i] < 0x7f && (data[i] >= ' ' || data[i] == '\t' ||
					(data[i] == '\r' && data[i + 1] == '\n') ||
					(data[i] == '\n' && data[i - 1] == '\r')));
	return 0;
}
