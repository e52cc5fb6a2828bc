/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines of CHANGES into entries. Invariant: entries in `all` are complete, own
 * their strings, and are in order.
 */
#include "daemon/changes.h"
#include "daemon/limits.h"
#include "lib/base64.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void changes_init(struct changes *c)
{
	*c = (struct changes){0};
	buf_init(&c->line, LIMIT_CHANGE_LINE);
}

void changes_free(struct changes *c)
{
	for (size_t i = 0; i < c->n; i++) {
		free(c->all[i].path);
		free(c->all[i].link);
	}
	free(c->all);
	buf_free(&c->line);
	*c = (struct changes){0};
}

/* Whether path is what was asked for, or below it; asked may have more slashes than it needs. */
static bool is_in(const char *path, const char *asked)
{
	for (;;) {
		size_t n;

		asked += strspn(asked, "/");
		if (!*asked)
			return true;
		n = strcspn(asked, "/");
		if (strncmp(path + 1, asked, n) != 0 || (path[1 + n] && path[1 + n] != '/'))
			return false;
		path += 1 + n;
		asked += n;
		if (!*path)
			return asked[strspn(asked, "/")] == '\0';
	}
}

static bool was_asked_for(const struct changes *c, const char *path)
{
	bool found = !c->paths;
	const json_t *v;
	size_t i;

	json_array_foreach((json_t *)(uintptr_t)c->paths, i, v)
	{
		found = is_in(path, json_string_value(v));
		if (found)
			break;
	}
	return found;
}

/* --- one line ---------------------------------------------------------------------------- */

static int read_int(const json_t *o, const char *name, json_int_t min, json_int_t max,
		    json_int_t *out)
{
	const json_t *v = json_object_get(o, name);

	if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
		return -EPROTO;
	*out = json_integer_value(v);
	return 0;
}

/* "opaque_dir" and "gone" are words of an entry alone, not of what is below. */
static int read_stat(const json_t *o, bool entry, struct change_stat *st, bool *opaque)
{
	static const char *const words[] = {
		[CHANGE_FILE] = "file",
		[CHANGE_DIR] = "dir",
		[CHANGE_LINK] = "link",
		[CHANGE_OTHER] = "other",
	};
	const char *type = json_string_value(json_object_get(o, "type"));
	json_int_t size, mode;

	*st = (struct change_stat){0};
	if (!type)
		return -EPROTO;
	if (entry && strcmp(type, "gone") == 0)
		return 0;
	if (entry && strcmp(type, "opaque_dir") == 0) {
		st->type = CHANGE_DIR;
		*opaque = true;
	}
	for (enum change_type t = CHANGE_FILE; t <= CHANGE_OTHER; t++)
		if (strcmp(type, words[t]) == 0)
			st->type = t;
	if (!st->type || read_int(o, "size", 0, INT64_MAX, &size) < 0 ||
	    read_int(o, "mode", 0, 07777, &mode) < 0)
		return -EPROTO;
	st->size = size;
	st->mode = (uint32_t)mode;
	return 0;
}

/* "path", or "path_base64" for one that is not UTF-8. */
static int read_path(const json_t *o, char **out)
{
	const char *text = json_string_value(json_object_get(o, "path"));
	const char *base64 = json_string_value(json_object_get(o, "path_base64"));
	size_t len;

	if (!text == !base64)
		return -EPROTO;
	if (base64) {
		ssize_t n;

		len = strlen(base64);
		*out = malloc(len + 1);
		if (!*out)
			return -ENOMEM;
		n = base64_decode((uint8_t *)*out, base64, len);
		if (n < 0)
			return -EPROTO;
		len = (size_t)n;
		(*out)[len] = '\0';
	} else {
		len = strlen(text);
		*out = strdup(text);
		if (!*out)
			return -ENOMEM;
	}
	if (len == 0 || len > LIMIT_PATH || (*out)[0] != '/' || strlen(*out) != len ||
	    strstr(*out, "//") || (len > 1 && (*out)[len - 1] == '/'))
		return -EPROTO;
	return 0;
}

static int read_change(struct change *e, const json_t *o)
{
	const json_t *below = json_object_get(o, "below"), *link = json_object_get(o, "link");
	bool no = false;
	int rc = read_path(o, &e->path);

	if (rc == 0)
		rc = read_stat(o, true, &e->now, &e->opaque);
	if (rc == 0 && below && !json_is_null(below))
		rc = read_stat(below, false, &e->below, &no);
	if (rc < 0 || e->now.type == CHANGE_NONE)
		return rc;
	if (read_int(o, "ino", INT64_MIN, INT64_MAX, &e->ino) < 0 ||
	    read_int(o, "ctime_ns", INT64_MIN, INT64_MAX, &e->ctime_ns) < 0 ||
	    read_int(o, "mtime_ns", INT64_MIN, INT64_MAX, &e->mtime_ns) < 0)
		return -EPROTO;
	if (json_is_string(link)) {
		e->link = strdup(json_string_value(link));
		if (!e->link)
			return -ENOMEM;
	}
	return 0;
}

static int changes_room(struct changes *c)
{
	size_t cap = c->cap ? c->cap * 2 : 64;
	struct change *all;

	if (c->n == LIMIT_CHANGES)
		return -E2BIG;
	if (c->n < c->cap)
		return 0;
	all = realloc(c->all, cap * sizeof(*all));
	if (!all)
		return -ENOMEM;
	c->all = all;
	c->cap = cap;
	return 0;
}

static int changes_line(struct changes *c, const uint8_t *p, size_t len)
{
	struct change e = {0};
	json_t *o;
	int rc = changes_room(c);

	if (rc < 0)
		return rc;
	o = json_safe_load_few((const char *)p, len, LIMIT_AGENT_VALUES, JSON_REJECT_DUPLICATES);
	rc = json_is_object(o) ? read_change(&e, o) : json_safe_fault();
	/* The agent sorts: who of two guests does, is compared in turns, and not sorted in one. */
	if (rc == 0 && c->n && strcmp(c->all[c->n - 1].path, e.path) >= 0)
		rc = -EPROTO;
	if (rc == 0 && !was_asked_for(c, e.path))
		rc = -EPROTO;
	json_decref(o);
	if (rc < 0) {
		free(e.path);
		free(e.link);
		return rc;
	}
	c->all[c->n++] = e;
	return 0;
}

/* --- all of them ------------------------------------------------------------------------- */

int changes_feed(struct changes *c, const uint8_t *p, size_t len)
{
	c->bytes += len;
	if (c->bytes > LIMIT_CHANGES_BYTES)
		return -E2BIG;
	while (len) {
		const uint8_t *nl = memchr(p, '\n', len);
		size_t n = nl ? (size_t)(nl - p) : len;
		int rc = 0;

		if (nl && buf_len(&c->line) == 0) {
			rc = changes_line(c, p, n);
		} else {
			rc = buf_append(&c->line, p, n);
			if (rc == -ENOBUFS)
				rc = -EPROTO;
			if (rc == 0 && nl)
				rc = changes_line(c, buf_data(&c->line), buf_len(&c->line));
			if (nl)
				buf_consume(&c->line, buf_len(&c->line));
		}
		if (rc < 0)
			return rc;
		n += nl != NULL;
		p += n;
		len -= n;
	}
	return 0;
}

int changes_end(struct changes *c)
{
	return buf_len(&c->line) ? -EPROTO : 0;
}
