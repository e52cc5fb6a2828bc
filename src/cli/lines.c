/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Line splitter with a bound; see the header. State is in the caller's struct.
 */
#include "cli/lines.h"
#include "lib/plain.h"

static void lines_deliver(struct lines *l, lines_fn *fn, void *arg)
{
	l->line[l->len] = '\0';
	plain_text(l->line, '?', "\t");
	l->len = 0;
	l->cut = false;
	fn(arg, l->line);
}

void lines_feed(struct lines *l, const char *data, size_t len, lines_fn *fn, void *arg)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)data[i];

		if (c == '\n') {
			lines_deliver(l, fn, arg);
			continue;
		}
		if (c == '\r' || l->cut)
			continue;
		if (l->len == sizeof(l->line) - 1) {
			l->cut = true;
			continue;
		}
		l->line[l->len++] = c ? (char)c : '?';
	}
}

void lines_end(struct lines *l, lines_fn *fn, void *arg)
{
	if (l->len)
		lines_deliver(l, fn, arg);
}
