/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers in pieces. Invariant: what is held is what there has been in `out` since it was empty, if
 * that is not small, and `keep` at least.
 */
#include "daemon/pieces.h"
#include "daemon/held.h"
#include "daemon/intake.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <string.h>

/* More than the text of one and a piece can be. */
#define PIECES_MAX (16u << 20)

void pieces_init(struct pieces *p, struct request *r, int (*next)(struct pieces *p))
{
	*p = (struct pieces){.r = r, .next = next};
	buf_init(&p->out, PIECES_MAX);
}

static int pieces_hold(struct pieces *p, size_t n)
{
	int rc;

	if (n <= LIMIT_HELD_SMALL || n <= p->held)
		return 0;
	rc = held_take(intake_held(p->r), n - p->held);
	if (rc == 0)
		p->held = n;
	return rc;
}

/* All that was made is with the client: its memory goes, too. */
static void pieces_gone(struct pieces *p)
{
	held_give(intake_held(p->r), p->held - p->keep);
	p->held = p->keep;
	buf_free(&p->out);
}

int pieces_reserve(struct pieces *p, size_t n, size_t one_len)
{
	size_t most = LIMIT_LIST_PIECE + one_len, all = n * one_len;
	int rc = pieces_hold(p, all < most ? all : most);

	p->keep = p->held;
	return rc;
}

int pieces_put(struct pieces *p, const char *text)
{
	size_t n = strlen(text);
	int rc = pieces_hold(p, buf_len(&p->out) + n);

	return rc < 0 ? rc : buf_append(&p->out, text, n);
}

int pieces_put_json(struct pieces *p, json_t *value)
{
	_cleanup_free char *text = json_text(value);

	json_decref(value);
	return text ? pieces_put(p, text) : -ENOMEM;
}

static int pieces_fill(struct pieces *p)
{
	int rc = 0;

	while (rc == 0 && !p->ended && buf_len(&p->out) < LIMIT_LIST_PIECE)
		rc = p->next(p);
	return rc;
}

void pieces_reply(struct pieces *p, const struct request_ops *ops)
{
	static const char type[] = "application/json";
	int rc = pieces_fill(p);
	size_t n = buf_len(&p->out);

	if (rc == -ENOSPC || rc == -EDQUOT) {
		reply_overloaded(p->r);
	} else if (rc < 0) {
		reply_json(p->r, 500, NULL);
	} else if (p->ended && n <= LIMIT_HELD_SMALL) {
		http_reply(p->r, 200, type, buf_data(&p->out), n, NULL);
		pieces_gone(p);
	} else {
		p->r->ops = ops;
		http_reply_stream(p->r, 200, type, p->ended ? (int64_t)n : -1, NULL);
	}
}

ssize_t pieces_pull(struct pieces *p, char *out, size_t max)
{
	size_t n;

	if (buf_len(&p->out) == 0 && pieces_fill(p) < 0)
		return PULL_ABORT;
	n = buf_len(&p->out) < max ? buf_len(&p->out) : max;
	if (n == 0)
		return PULL_END;
	memcpy(out, buf_data(&p->out), n);
	buf_consume(&p->out, n);
	if (buf_len(&p->out) == 0)
		pieces_gone(p);
	return (ssize_t)n;
}

void pieces_free(struct pieces *p)
{
	held_give(intake_held(p->r), p->held);
	p->held = p->keep = 0;
	buf_free(&p->out);
}
