/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/sandboxes. Made while it is sent (pieces.h): what was begun goes on with those that still
 * live.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/pieces.h"
#include "daemon/reply.h"

#include <errno.h>
#include <string.h>

struct listing {
	struct pieces p;
	char (*ids)[SANDBOX_ID_LEN + 1];
	size_t n, next;
	bool some; /* one was put */
};

/* The next of them that lives, or the end. */
static int list_next(struct pieces *p)
{
	struct listing *l = list_entry(p, struct listing, p);
	struct request *r = p->r;
	struct sandbox *sb = NULL;
	int rc;

	while (l->next < l->n && !sb)
		sb = registry_find(&r->http->d->registry, l->ids[l->next++], r->owner);
	if (!sb) {
		p->ended = true;
		return pieces_put(p, l->some ? "]}" : "{\"sandboxes\":[]}");
	}
	rc = pieces_put(p, l->some ? "," : "{\"sandboxes\":[");
	l->some = true;
	return rc < 0 ? rc : pieces_put_json(p, sandbox_json(sb, true));
}

static ssize_t list_pull(struct request *r, char *out, size_t max)
{
	struct listing *l = r->state;

	return pieces_pull(&l->p, out, max);
}

static void list_end(struct request *r)
{
	struct listing *l = r->state;

	pieces_free(&l->p);
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
		if (sb->announced && owner_may(l->p.r->owner, sb->owner))
			memcpy(l->ids[l->n++], sb->id, sizeof(sb->id));
	return true;
}

void api_sandbox_list(struct request *r)
{
	struct listing *l = calloc(1, sizeof(*l));

	if (!l) {
		reply_json(r, 500, NULL);
		return;
	}
	pieces_init(&l->p, r, list_next);
	r->state = l;
	r->ops = &list_whole_ops;
	if (list_ids(l, &r->http->d->registry))
		pieces_reply(&l->p, &list_ops);
	else
		reply_json(r, 500, NULL);
}
