/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring of strings. It has its full size from the first record on: 8 KiB.
 */
#include "daemon/egress/log.h"
#include "lib/cleanup.h"

#include <string.h>

static char **slot(const struct egress_log *l, size_t i)
{
	return &l->text[(l->first + i) % EGRESS_LOG_MAX];
}

void egress_log_add(struct egress_log *l, char *text)
{
	if (!l->text)
		l->text = calloc(EGRESS_LOG_MAX, sizeof(*l->text));
	if (!l->text) {
		free(text);
		return;
	}
	l->bytes += strlen(text);
	while (l->n && (l->n == EGRESS_LOG_MAX || l->bytes > EGRESS_LOG_BYTES)) {
		l->bytes -= strlen(*slot(l, 0));
		free(*slot(l, 0));
		l->first = (l->first + 1) % EGRESS_LOG_MAX;
		l->n--;
	}
	*slot(l, l->n++) = text;
}

char *egress_log_lines(const struct egress_log *l, size_t limit, size_t *len)
{
	size_t from = l->n > limit ? l->n - limit : 0, size = 1;
	char *out, *at;

	for (size_t i = from; i < l->n; i++)
		size += strlen(*slot(l, i)) + 1;
	out = at = malloc(size);
	if (!out)
		return NULL;
	for (size_t i = from; i < l->n; i++) {
		size_t n = strlen(*slot(l, i));

		memcpy(at, *slot(l, i), n);
		at[n] = '\n';
		at += n + 1;
	}
	*at = '\0';
	*len = (size_t)(at - out);
	return out;
}

void egress_log_free(struct egress_log *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(*slot(l, i));
	free(l->text);
	*l = (struct egress_log){0};
}
