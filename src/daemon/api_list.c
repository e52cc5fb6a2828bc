/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/sandboxes. Each may have 1 MiB of allowlist: the text of one is made when
 * the one before has gone, and what was begun goes on with those that still live.
 * What is short, as it nearly always is, is answered in one piece.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/intake.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <string.h>

/* More than the text of one and a piece can be. */
#define LIST_MAX (16u << 20)

struct listing {
	struct request *r;
	char (*ids)[SANDBOX_ID_LEN + 1];
	size_t n, next;
	bool some, ended; /* one was put; all is there */
	struct buf out;
	size_t held; /* for out */
};

static int list_put(struct listing *l, const char *text)
{
	size_t n = strlen(text);
	int rc = held_take(intake_held(l->r), n);

	if (rc < 0)
		return rc;
	l->held += n;
	return buf_append(&l->out, text, n);
}

/* The next of them that lives, or the end. */
static int list_next(struct listing *l)
{
	struct sandbox *sb = NULL;
	_cleanup_free char *text = NULL;
	json_t *o;
	int rc;

	while (l->next < l->n && !sb)
		sb = registry_find(&l->r->http->d->registry, l->ids[l->next++], l->r->owner);
	if (!sb) {
		l->ended = true;
		return list_put(l, l->some ? "]}" : "{\"sandboxes\":[]}");
	}
	o = sandbox_json(sb, true);
	text = json_text(o);
	json_decref(o);
	if (!text)
		return -ENOMEM;
	rc = list_put(l, l->some ? "," : "{\"sandboxes\":[");
	l->some = true;
	return rc < 0 ? rc : list_put(l, text);
}

static int list_fill(struct listing *l)
{
	int rc = 0;

	while (rc == 0 && !l->ended && buf_len(&l->out) < LIMIT_LIST_PIECE)
		rc = list_next(l);
	return rc;
}

static ssize_t list_pull(struct request *r, char *out, size_t max)
{
	struct listing *l = r->state;
	size_t n;

	if (buf_len(&l->out) == 0 && list_fill(l) < 0)
		return PULL_ABORT;
	n = buf_len(&l->out) < max ? buf_len(&l->out) : max;
	if (n == 0)
		return PULL_END;
	memcpy(out, buf_data(&l->out), n);
	buf_consume(&l->out, n);
	held_give(intake_held(r), n);
	l->held -= n;
	if (buf_len(&l->out) == 0)
		buf_free(&l->out);
	return (ssize_t)n;
}

static void list_end(struct request *r)
{
	struct listing *l = r->state;

	held_give(intake_held(r), l->held);
	buf_free(&l->out);
	free(l->ids);
	free(l);
}

static const struct request_ops list_ops = {.pull = list_pull, .end = list_end};
/* All of it is in the answer already. */
static const struct request_ops list_whole_ops = {.end = list_end};

/* Those that there are now, oldest first. */
static bool list_ids(struct listing *l, struct registry *all)
{
	size_t n = 0;

	list_for_each (sb, &all->live, struct sandbox, link)
		n++;
	l->ids = calloc(n + 1, sizeof(*l->ids));
	if (!l->ids)
		return false;
	list_for_each (sb, &all->live, struct sandbox, link)
		if (sb->announced && owner_may(l->r->owner, sb->owner))
			memcpy(l->ids[l->n++], sb->id, sizeof(sb->id));
	return true;
}

void api_sandbox_list(struct request *r)
{
	struct listing *l = calloc(1, sizeof(*l));
	int rc = -ENOMEM;

	if (!l) {
		reply_json(r, 500, NULL);
		return;
	}
	l->r = r;
	buf_init(&l->out, LIST_MAX);
	r->state = l;
	r->ops = &list_whole_ops;
	if (list_ids(l, &r->http->d->registry))
		rc = list_fill(l);
	if (rc == -ENOSPC || rc == -EDQUOT) {
		reply_overloaded(r);
	} else if (rc < 0) {
		reply_json(r, 500, NULL);
	} else if (l->ended) {
		http_reply(r, 200, "application/json", buf_data(&l->out), buf_len(&l->out), NULL);
	} else {
		r->ops = &list_ops;
		http_reply_stream(r, 200, "application/json", -1, NULL);
	}
}
