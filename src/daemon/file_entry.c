/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries are parsed and written anew, with the members that are known.
 */
#include "daemon/file_entry.h"
#include "daemon/limits.h"
#include "lib/base64.h"
#include "lib/json_safe.h"
#include "proto/frame.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

static bool is_number(const json_t *v, json_int_t min, json_int_t max)
{
	return json_is_integer(v) && json_integer_value(v) >= min && json_integer_value(v) <= max;
}

static bool is_type(const json_t *v)
{
	static const char *const words[] = {"file", "dir", "link", "other"};
	const char *s = json_string_value(v);

	for (size_t i = 0; s && i < ARRAY_SIZE(words); i++)
		if (strcmp(s, words[i]) == 0)
			return true;
	return false;
}

/* A path, or as base64 when it is not UTF-8 (a third longer). */
static bool is_name(const json_t *v)
{
	return json_is_string(v) && json_string_length(v) >= 1 &&
	       json_string_length(v) <= BASE64_SIZE((size_t)LIMIT_PATH);
}

static bool is_entry(const json_t *o)
{
	json_t *path = json_object_get(o, "path"), *base64 = json_object_get(o, "path_base64");
	json_t *link = json_object_get(o, "link"), *link64 = json_object_get(o, "link_base64");
	json_t *target = json_object_get(o, "target_type");

	return json_is_object(o) && !path != !base64 && is_name(path ? path : base64) &&
	       is_type(json_object_get(o, "type")) &&
	       is_number(json_object_get(o, "size"), 0, INT64_MAX) &&
	       is_number(json_object_get(o, "mode"), 0, 07777) &&
	       is_number(json_object_get(o, "mtime_ms"), INT64_MIN, INT64_MAX) &&
	       is_number(json_object_get(o, "uid"), 0, UINT32_MAX) &&
	       is_number(json_object_get(o, "gid"), 0, UINT32_MAX) && (!link || !link64) &&
	       (!link || is_name(link)) && (!link64 || is_name(link64)) &&
	       (!target || json_is_null(target) || is_type(target));
}

json_t *file_entry_json(const json_t *o)
{
	static const char *const names[] = {"path", "path_base64", "type",       "size",
					    "mode", "mtime_ms",    "uid",        "gid",
					    "link", "link_base64", "target_type"};
	json_t *out = is_entry(o) ? json_object() : NULL;

	for (size_t i = 0; out && i < ARRAY_SIZE(names); i++) {
		json_t *v = json_object_get(o, names[i]);

		if (!v || json_is_null(v))
			continue;
		if (json_object_set(out, names[i], v) < 0) {
			json_decref(out);
			out = NULL;
		}
	}
	return out;
}

/* --- lists ------------------------------------------------------------------------------- */

static const char list_head[] = "{\"entries\":[";

void file_list_init(struct file_list *l)
{
	*l = (struct file_list){0};
	buf_init(&l->line, LIMIT_ENTRY_LINE);
	/* A line is not longer when it is written anew, but for the comma. */
	buf_init(&l->out, LIMIT_ENTRY_LINE + 2 * FRAME_PAYLOAD_MAX + sizeof(list_head));
}

void file_list_free(struct file_list *l)
{
	buf_free(&l->line);
	buf_free(&l->out);
}

static int list_begin(struct file_list *l)
{
	return l->n ? buf_append(&l->out, ",", 1)
		    : buf_append(&l->out, list_head, sizeof(list_head) - 1);
}

/* Of a buffer: one that comes to its bound holds more than an agent may send. */
static int list_error(int rc)
{
	return rc == -ENOBUFS ? -EPROTO : rc;
}

static int list_line(struct file_list *l, const uint8_t *p, size_t len)
{
	json_t *o = json_safe_load_few((const char *)p, len, LIMIT_AGENT_VALUES,
				       JSON_REJECT_DUPLICATES);
	json_t *entry = file_entry_json(o);
	_cleanup_free char *text = json_text(entry);
	int rc;

	json_decref(entry);
	json_decref(o);
	if (!text)
		return json_safe_fault();
	if (l->n == LIMIT_CHANGES)
		return -EPROTO;
	rc = list_begin(l);
	if (rc == 0)
		rc = buf_append(&l->out, text, strlen(text));
	l->n += rc == 0;
	return list_error(rc);
}

int file_list_feed(struct file_list *l, const uint8_t *p, size_t len)
{
	while (len) {
		const uint8_t *nl = memchr(p, '\n', len);
		size_t n = nl ? (size_t)(nl - p) : len;
		int rc;

		if (nl && buf_len(&l->line) == 0) {
			rc = list_line(l, p, n);
		} else {
			rc = list_error(buf_append(&l->line, p, n));
			if (rc == 0 && nl) {
				rc = list_line(l, buf_data(&l->line), buf_len(&l->line));
				buf_consume(&l->line, buf_len(&l->line));
			}
		}
		if (rc < 0)
			return rc;
		p += nl ? n + 1 : n;
		len -= nl ? n + 1 : n;
	}
	return 0;
}

int file_list_end(struct file_list *l)
{
	int rc = buf_len(&l->line) ? -EPROTO : 0;

	if (rc == 0 && l->n == 0)
		rc = list_begin(l);
	return list_error(rc == 0 ? buf_append(&l->out, "]}", 2) : rc);
}
