/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The answer of a diff as text, written while it is sent: as a tree of values it
 * would take many times the memory, and as one text it may have tens of megabytes.
 */
#include "daemon/diff.h"
#include "daemon/limits.h"
#include "lib/base64.h"
#include "lib/json_safe.h"
#include "lib/utf8.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_PIECE 65536u
/* One entry: its path escaped, and what is around it. */
#define TEXT_ITEM (JSON_ESCAPE_MAX * LIMIT_PATH + 512u)
/* A piece, one entry more, and the paths that were asked for, which fit a frame. */
#define TEXT_MAX (TEXT_PIECE + TEXT_ITEM + JSON_ESCAPE_MAX * 65536u + 4096u)

static const char *const types[] = {
	[CHANGE_NONE] = "none", [CHANGE_FILE] = "file",   [CHANGE_DIR] = "dir",
	[CHANGE_LINK] = "link", [CHANGE_OTHER] = "other",
};

static const struct {
	enum compare_kind kind;
	const char *begin;
} lists[] = {
	{COMPARE_ADDED, "{\"added\":["},
	{COMPARE_REMOVED, "],\"removed\":["},
	{COMPARE_MODIFIED, "],\"modified\":["},
};

static size_t put_path(char *o, const char *path)
{
	size_t len = strlen(path);
	bool utf8 = utf8_valid((const uint8_t *)path, len);
	size_t n = (size_t)sprintf(o, "{\"%s\":\"", utf8 ? "path" : "path_base64");

	n += utf8 ? json_escape(o + n, (const uint8_t *)path, len)
		  : base64_encode(o + n, (const uint8_t *)path, len);
	o[n++] = '"';
	return n;
}

static size_t put_item(char *o, const struct compare_item *it)
{
	const struct change_stat *st = it->kind == COMPARE_REMOVED ? &it->a : &it->b;
	size_t n = put_path(o, it->path);

	n += (size_t)sprintf(o + n, ",\"type\":\"%s\",\"size\":%lld,\"mode\":%u", types[st->type],
			     (long long)st->size, st->mode);
	if (it->kind == COMPARE_MODIFIED)
		n += (size_t)sprintf(o + n,
				     ",\"old_type\":\"%s\",\"old_size\":%lld,\"old_mode\":%u",
				     types[it->a.type], (long long)it->a.size, it->a.mode);
	o[n++] = '}';
	return n;
}

static int text_put(struct diff_text *t, const char *text)
{
	return buf_append(&t->out, text, strlen(text)) < 0 ? -ENOMEM : 0;
}

static int text_item(struct diff_text *t, const struct compare_item *it)
{
	char *o = (char *)buf_reserve(&t->out, TEXT_ITEM);
	size_t n = 0;

	if (!o)
		return -ENOMEM;
	if (t->some)
		o[n++] = ',';
	n += put_item(o + n, it);
	buf_commit(&t->out, n);
	t->some = true;
	return 0;
}

static int text_end(struct diff_text *t)
{
	_cleanup_free char *paths = json_text(t->paths);

	t->ended = true;
	if (!paths || text_put(t, "],\"paths\":") < 0 || text_put(t, paths) < 0)
		return -ENOMEM;
	return text_put(t, "}");
}

/* Looks at one item, or goes on to the next list. */
static int text_step(struct diff_text *t)
{
	const struct comparison *c = t->c;

	if (t->next < c->n) {
		const struct compare_item *it = &c->all[t->next++];

		return it->kind == lists[t->list].kind ? text_item(t, it) : 0;
	}
	t->next = 0;
	t->some = false;
	if (++t->list == ARRAY_SIZE(lists))
		return text_end(t);
	return text_put(t, lists[t->list].begin);
}

static int text_fill(struct diff_text *t)
{
	int rc = 0;

	while (rc == 0 && !t->ended && buf_len(&t->out) < TEXT_PIECE)
		rc = text_step(t);
	return rc;
}

int diff_text_begin(struct diff_text *t, const struct comparison *c, const json_t *paths)
{
	*t = (struct diff_text){.c = c, .paths = paths};
	buf_init(&t->out, TEXT_MAX);
	return text_put(t, lists[0].begin) < 0 ? -ENOMEM : text_fill(t);
}

ssize_t diff_text_take(struct diff_text *t, char *out, size_t max)
{
	size_t n;

	if (buf_len(&t->out) == 0 && text_fill(t) < 0)
		return -ENOMEM;
	n = buf_len(&t->out) < max ? buf_len(&t->out) : max;
	if (n)
		memcpy(out, buf_data(&t->out), n);
	buf_consume(&t->out, n);
	return (ssize_t)n;
}

void diff_text_free(struct diff_text *t)
{
	buf_free(&t->out);
}
