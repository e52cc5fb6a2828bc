/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In order: the ids, times, and the results one by one. A child may end while those before it are
 * sent: then its result says so.
 */
#include "daemon/fork_reply.h"
#include "daemon/daemon.h"
#include "daemon/egress/egress.h"
#include "daemon/egress/grant.h"
#include "daemon/pieces.h"
#include "daemon/reply.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Of a result, beside its metadata and what it may reach. */
#define RESULT_BYTES 1024u

struct fork_reply_child {
	char id[SANDBOX_ID_LEN + 1]; /* "": there is none */
	const char *error;
};

struct fork_reply {
	struct pieces p;
	uint64_t pause_us, ready_us;
	unsigned int n, next;
	bool begun;
	struct fork_reply_child child[];
};

/* NULL: it failed, or has ended. */
static struct sandbox *child_of(struct fork_reply *f, struct fork_reply_child *c)
{
	struct request *r = f->p.r;
	struct sandbox *sb =
		c->id[0] ? registry_find(&r->http->d->registry, c->id, r->owner) : NULL;

	if (!sb && c->id[0])
		c->error = "it has ended since it was made";
	if (!sb)
		c->id[0] = '\0';
	return sb;
}

static int put_result(struct fork_reply *f, struct fork_reply_child *c)
{
	struct sandbox *sb = child_of(f, c);

	return pieces_put_json(
		&f->p, sb ? sandbox_json(sb, false)
			  : json_pack("{s:s, s:s}", "error", c->error, "code", "fork_failed"));
}

static int put_ids(struct fork_reply *f)
{
	json_t *ids = json_array();
	int rc = ids ? 0 : -1;

	for (unsigned int i = 0; i < f->n && rc == 0; i++)
		rc = json_array_append_new(
			ids, child_of(f, &f->child[i]) ? json_string(f->child[i].id) : json_null());
	if (rc < 0) {
		json_decref(ids);
		return -ENOMEM;
	}
	return pieces_put_json(&f->p, ids);
}

static int put_head(struct fork_reply *f)
{
	char text[112];
	int rc = pieces_put(&f->p, "{\"children\":");

	if (rc == 0)
		rc = put_ids(f);
	if (rc < 0)
		return rc;
	f->begun = true;
	snprintf(text, sizeof(text),
		 ",\"pause_us\":%" PRIu64 ",\"ready_us\":%" PRIu64 ",\"results\":[", f->pause_us,
		 f->ready_us);
	return pieces_put(&f->p, text);
}

static int reply_next(struct pieces *p)
{
	struct fork_reply *f = list_entry(p, struct fork_reply, p);
	int rc;

	if (f->next == f->n) {
		p->ended = true;
		return pieces_put(p, "]}");
	}
	rc = f->begun ? pieces_put(p, ",") : put_head(f);
	return rc < 0 ? rc : put_result(f, &f->child[f->next++]);
}

/* About what a result has; what the parent has may still change until it is frozen. */
static size_t result_size(const struct sandbox *sb, const struct grant *grant)
{
	const struct grant *g = grant ? grant : egress_grant(sb);
	size_t n = RESULT_BYTES + json_dumpb(sb->metadata, NULL, 0, JSON_COMPACT);

	return g ? n + g->text : n;
}

struct fork_reply *fork_reply_new(struct request *r, const struct sandbox *sb,
				  const struct grant *grant, unsigned int n)
{
	struct fork_reply *f = calloc(1, sizeof(*f) + n * sizeof(f->child[0]));

	if (!f) {
		reply_json(r, 500, NULL);
		return NULL;
	}
	pieces_init(&f->p, r, reply_next);
	f->n = n;
	if (pieces_reserve(&f->p, n, result_size(sb, grant)) == 0)
		return f;
	reply_overloaded(r);
	fork_reply_free(f);
	return NULL;
}

void fork_reply_child(struct fork_reply *f, unsigned int i, const char *id, const char *error)
{
	snprintf(f->child[i].id, sizeof(f->child[i].id), "%s", id ? id : "");
	f->child[i].error = error;
}

void fork_reply_send(struct fork_reply *f, uint64_t pause_us, uint64_t ready_us,
		     const struct request_ops *ops)
{
	f->pause_us = pause_us;
	f->ready_us = ready_us;
	pieces_reply(&f->p, ops);
}

ssize_t fork_reply_pull(struct fork_reply *f, char *out, size_t max)
{
	return pieces_pull(&f->p, out, max);
}

void fork_reply_free(struct fork_reply *f)
{
	if (!f)
		return;
	pieces_free(&f->p);
	free(f);
}
