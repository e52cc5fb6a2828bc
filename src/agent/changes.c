/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CHANGES: a line of JSON for each entry of a walk (tree.c), collected into
 * frames.
 */
#define _GNU_SOURCE
#include "agent/changes.h"
#include "agent/agent.h"
#include "agent/entry.h"
#include "agent/stream.h"
#include "agent/tree.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Entries in one turn of the loop: some milliseconds. */
#define CHANGES_BATCH 512

struct changes {
	struct tree tree;
	struct buf lines;
};

static void changes_free(void *job)
{
	struct changes *c = job;

	tree_close(&c->tree);
	buf_free(&c->lines);
	free(c);
}

static const char *changes_kind(enum tree_kind kind)
{
	static const char *const names[] = {"file", "dir", "link", "other", "gone", "opaque_dir"};

	return names[kind];
}

static json_int_t changes_ns(const struct timespec *t)
{
	return (json_int_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

static json_t *changes_object(const struct tree_entry *e)
{
	json_t *below =
		e->below
			? json_pack("{s:s, s:I, s:i}", "type", entry_type(e->image.st_mode), "size",
				    entry_size(&e->image), "mode", (int)(e->image.st_mode & 07777))
			: json_null();
	json_t *obj =
		json_pack("{s:s, s:I, s:i, s:I, s:I, s:I, s:o}", "type", changes_kind(e->kind),
			  "size", entry_size(&e->st), "mode", (int)(e->st.st_mode & 07777), "ino",
			  (json_int_t)e->st.st_ino, "ctime_ns", changes_ns(&e->st.st_ctim),
			  "mtime_ns", changes_ns(&e->st.st_mtim), "below", below);

	if (!obj)
		return NULL;
	if (entry_put_name(obj, "path", e->path) == 0 &&
	    (!e->link || entry_put_name(obj, "link", e->link) == 0))
		return obj;
	json_decref(obj);
	return NULL;
}

static int changes_add(struct changes *c, const struct tree_entry *e)
{
	json_t *obj = changes_object(e);
	char *text = json_text(obj);
	int rc = text ? buf_append(&c->lines, text, strlen(text)) : -ENOMEM;

	if (rc == 0)
		rc = buf_append(&c->lines, "\n", 1);
	free(text);
	json_decref(obj);
	return rc;
}

/* Sends what was collected, as far as there is room: false when some is left. */
static bool changes_flush(struct stream *s, struct changes *c)
{
	while (buf_len(&c->lines)) {
		size_t max = stream_room(s), n = buf_len(&c->lines);

		if (max == 0)
			return false;
		if (n > max)
			n = max;
		stream_put(s, FRAME_DATA_OUT, buf_data(&c->lines), n);
		buf_consume(&c->lines, n);
	}
	return true;
}

static void changes_end(struct stream *s, struct changes *c, int rc, const struct err *err)
{
	if (rc < 0) {
		stream_fail(s, err);
	} else {
		stream_put(s, FRAME_END_OUT, NULL, 0);
		stream_done(s);
	}
	changes_free(c);
}

static void changes_send(struct stream *s, struct changes *c)
{
	struct tree_entry e;
	struct err err;
	int rc = 2;

	if (!changes_flush(s, c))
		return;
	for (int i = 0; i < CHANGES_BATCH && buf_len(&c->lines) < FRAME_PAYLOAD_MAX / 2; i++) {
		rc = tree_next(&c->tree, &e, &err);
		if (rc == 1 && changes_add(c, &e) < 0)
			rc = err_text(&err, ENOMEM, "out of memory");
		if (rc != 1)
			break;
	}
	/* stream_room() may say no: then the last of it goes with the next turn. */
	if (rc < 0 || (rc == 0 && changes_flush(s, c)))
		changes_end(s, c, rc, &err);
	else
		stream_yield(s);
}

static void changes_on_room(struct stream *s, void *job)
{
	changes_send(s, job);
}

static const struct stream_ops changes_ops = {
	.room = changes_on_room,
	.gone = changes_free,
};

void changes_begin(struct stream *s, const struct request_changes *r)
{
	const struct layers *l = &s->agent->layers;
	struct changes *c;
	struct err err;

	if (l->upper < 0 || l->image < 0) {
		stream_error(s, ENOTSUP, "this machine has no writable layer of its own");
		return;
	}
	c = calloc(1, sizeof(*c));
	if (!c) {
		stream_error(s, ENOMEM, "out of memory");
		return;
	}
	/* More than one line never comes on top of half a frame; a line is two long names. */
	buf_init(&c->lines, (size_t)FRAME_PAYLOAD_MAX * 2);
	if (tree_open(&c->tree, l->upper, l->image, (const char *const *)r->paths, r->npaths,
		      &err) < 0) {
		stream_fail(s, &err);
		free(c);
		return;
	}
	stream_set_job(s, &changes_ops, c);
	stream_put_json(s, FRAME_OK, json_object());
	stream_yield(s);
}
