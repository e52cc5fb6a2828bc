/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET files/list: the agent's lines become one JSON text, as fast as the client
 * takes it.
 */
#include "daemon/api.h"
#include "daemon/file_entry.h"
#include "daemon/limits.h"
#include "daemon/query.h"
#include "daemon/reply.h"
#include "daemon/transfer.h"

#include <errno.h>
#include <string.h>

struct listing {
	struct transfer t;
	struct file_list list;
};

/* One frame after OK. 0, or -errno. */
static int listing_frame(struct listing *l, const struct frame *f)
{
	int rc;

	if (f->type == FRAME_DATA_OUT)
		return file_list_feed(&l->list, f->payload, f->len);
	if (f->type != FRAME_END_OUT)
		return -EPROTO;
	rc = file_list_end(&l->list);
	if (rc < 0)
		return rc;
	l->t.complete = true;
	transfer_done(&l->t);
	return 0;
}

/* Takes frames until there is text for the client, or none for now. */
static void listing_fetch(struct listing *l)
{
	struct transfer *t = &l->t;

	while (t->s && buf_len(&l->list.out) == 0) {
		struct agent_failure why;
		struct frame f;
		int rc = agent_next(t->s, &f);

		if (rc == 0) {
			transfer_await(t);
			return;
		}
		transfer_heard(t);
		if (rc == 1 && f.type == FRAME_PONG)
			continue;
		if (rc == 1 && f.type == FRAME_ERROR) {
			agent_failure_parse(&f, &why);
			transfer_fail(t, &why);
			return;
		}
		if (rc == 1 && f.type == FRAME_OK && !t->begun) {
			t->begun = true;
			http_reply_stream(t->r, 200, "application/json", -1, NULL);
			continue;
		}
		if (rc == 1)
			rc = t->begun ? listing_frame(l, &f) : -EPROTO;
		if (rc < 0) {
			transfer_lost(t, rc);
			return;
		}
	}
}

static void listing_on_stream(struct agent_stream *s)
{
	struct listing *l = s->user;

	listing_fetch(l);
	if (buf_len(&l->list.out) || l->t.complete || l->t.cut)
		http_wake(l->t.r);
}

static ssize_t listing_pull(struct request *r, char *out, size_t max)
{
	struct listing *l = r->state;
	size_t n;

	listing_fetch(l);
	n = buf_len(&l->list.out);
	if (l->t.cut)
		return PULL_ABORT;
	if (n == 0)
		return l->t.complete ? PULL_END : PULL_WAIT;
	if (n > max)
		n = max;
	memcpy(out, buf_data(&l->list.out), n);
	buf_consume(&l->list.out, n);
	return (ssize_t)n;
}

static void listing_end(struct request *r)
{
	struct listing *l = r->state;

	file_list_free(&l->list);
	transfer_end(&l->t);
}

static const struct request_ops listing_ops = {.pull = listing_pull, .end = listing_end};

/* The parameter depth. False: answered. */
static bool listing_depth(struct request *r, int *depth)
{
	_cleanup_free char *text = NULL;
	int rc = query_get(r->query, "depth", &text);
	size_t n = text ? strlen(text) : 0;

	*depth = 1;
	if (rc == -ENOENT)
		return true;
	if (rc == 0 && n >= 1 && n <= 2 && strspn(text, "0123456789") == n) {
		*depth = atoi(text);
		if (*depth >= 1 && *depth <= LIMIT_LIST_DEPTH)
			return true;
	}
	if (rc == -ENOMEM)
		reply_json(r, 500, NULL);
	else
		reply_invalid(r, "depth", "depth must be an integer from 1 to %d, given once",
			      LIMIT_LIST_DEPTH);
	return false;
}

void api_file_list(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	_cleanup_free char *path = sb ? transfer_path(r) : NULL;
	struct transfer *t;
	int depth;

	if (!path || !listing_depth(r, &depth))
		return;
	t = transfer_begin(r, sb, FRAME_FILE,
			   json_pack("{s:s, s:s, s:i}", "op", "list", "path", path, "depth", depth),
			   sizeof(struct listing), listing_on_stream, &listing_ops);
	if (!t)
		return;
	file_list_init(&((struct listing *)t)->list);
	transfer_await(t);
}
