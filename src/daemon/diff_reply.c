/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The answer of a diff as text, written piece by piece: as a tree of values it
 * would take many times the memory.
 */
#define _GNU_SOURCE
#include "daemon/diff.h"
#include "daemon/limits.h"
#include "lib/json_safe.h"
#include "lib/utf8.h"
#include "lib/base64.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const types[] = {
	[CHANGE_NONE] = "none", [CHANGE_FILE] = "file",   [CHANGE_DIR] = "dir",
	[CHANGE_LINK] = "link", [CHANGE_OTHER] = "other",
};

static void put_path(FILE *f, const char *path)
{
	char text[JSON_ESCAPE_MAX * LIMIT_PATH];
	size_t len = strlen(path);
	bool utf8 = utf8_valid((const uint8_t *)path, len);
	size_t n = utf8 ? json_escape(text, (const uint8_t *)path, len)
			: base64_encode(text, (const uint8_t *)path, len);

	fprintf(f, "{\"%s\":\"%.*s\"", utf8 ? "path" : "path_base64", (int)n, text);
}

static void put_item(FILE *f, const struct compare_item *it)
{
	const struct change_stat *st = it->kind == COMPARE_REMOVED ? &it->a : &it->b;

	put_path(f, it->path);
	fprintf(f, ",\"type\":\"%s\",\"size\":%lld,\"mode\":%u", types[st->type],
		(long long)st->size, st->mode);
	if (it->kind == COMPARE_MODIFIED)
		fprintf(f, ",\"old_type\":\"%s\",\"old_size\":%lld,\"old_mode\":%u",
			types[it->a.type], (long long)it->a.size, it->a.mode);
	fputc('}', f);
}

static void put_list(FILE *f, const char *name, const struct comparison *c, enum compare_kind kind)
{
	bool first = true;

	fprintf(f, "\"%s\":[", name);
	for (size_t i = 0; i < c->n; i++) {
		if (c->all[i].kind != kind)
			continue;
		if (!first)
			fputc(',', f);
		first = false;
		put_item(f, &c->all[i]);
	}
	fputs("],", f);
}

char *diff_reply_text(const struct comparison *c, const json_t *paths, size_t *len)
{
	_cleanup_free char *list = json_text(paths);
	char *text = NULL;
	FILE *f = list ? open_memstream(&text, len) : NULL;

	if (!f)
		return NULL;
	fputc('{', f);
	put_list(f, "added", c, COMPARE_ADDED);
	put_list(f, "removed", c, COMPARE_REMOVED);
	put_list(f, "modified", c, COMPARE_MODIFIED);
	fprintf(f, "\"paths\":%s}", list);
	if (fclose(f) == 0)
		return text;
	free(text);
	return NULL;
}
