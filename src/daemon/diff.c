/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The course of a diff. Both sides do the same at their own pace; a step ends
 * when both have done it. Paths for HASHES go in batches, so that neither the
 * agent's limit nor our memory depends on how many there are.
 */
#include "daemon/diff.h"
#include "daemon/agent_failure.h"
#include "daemon/daemon.h"
#include "daemon/intake.h"
#include "daemon/limits.h"
#include "daemon/probe.h"
#include "daemon/reply.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HASH_LEN 64u

struct diff_side {
	struct diff *d;
	struct sandbox *sb;
	struct sandbox_user user;
	struct agent_stream *s;
	struct loop_timer silence; /* armed: it has said nothing of this step yet */
	bool ok, done;             /* OK has come; the step is over */
	struct changes changes;

	/* HASHES of a batch */
	size_t sent, offset; /* next item, bytes of it that went */
	bool end_sent;
	char *hashes; /* HASH_LEN of each item of the batch, "-" and zeros for none */
	size_t nhashes;
	char line[HASH_LEN + 1];
	size_t line_len;
};

struct diff {
	struct daemon *daemon;
	struct request *r;
	json_t *paths;
	struct diff_side side[2];
	struct comparison result;
	size_t from, to, batch; /* items of the batch; of these, to be hashed */
	struct loop_timer limit;
	struct loop_timer work; /* comparing goes on in the next turn */
	struct diff_text text;
	bool over;
	struct held *place; /* where it has one, or NULL */
	size_t held;        /* of its client's account */
};

static void diff_step(struct diff *d);
static ssize_t diff_pull(struct request *r, char *out, size_t max);
static void diff_end(struct request *r);

static const struct request_ops diff_ops = {.end = diff_end};
static const struct request_ops diff_stream_ops = {.pull = diff_pull, .end = diff_end};

/* Lets go of both guests; what has been answered stays answered. */
static void diff_over(struct diff *d)
{
	if (d->over)
		return;
	d->over = true;
	loop_timer_cancel(&d->limit);
	loop_timer_cancel(&d->work);
	for (int i = 0; i < 2; i++) {
		sandbox_drop_user(&d->side[i].user);
		loop_timer_cancel(&d->side[i].silence);
		agent_close(d->side[i].s);
		d->side[i].s = NULL;
	}
}

static void diff_fail(struct diff *d, const struct agent_failure *why)
{
	diff_over(d);
	reply_error(d->r, why->status, why->code, why->message, NULL, why->field);
}

static void diff_error(struct diff *d, int rc)
{
	struct agent_failure why = {.status = 502, .code = "agent_error"};

	if (rc == -ENOMEM) {
		diff_over(d);
		reply_json(d->r, 500, NULL);
		return;
	}
	if (rc == -E2BIG)
		why = (struct agent_failure){.status = 413, .code = "diff_too_large"};
	snprintf(why.message, sizeof(why.message), "%s",
		 rc == -E2BIG ? "too much has changed below these paths; compare fewer"
			      : agent_error_text(rc));
	diff_fail(d, &why);
}

/* --- what comes -------------------------------------------------------------------------- */

/* One line of HASHES, complete. */
static int hash_line(struct diff_side *s)
{
	static const char hex[] = "0123456789abcdef";
	char *out = s->hashes + s->nhashes * HASH_LEN;

	if (s->nhashes == s->d->batch)
		return -EPROTO;
	if (s->line_len == HASH_LEN && strspn(s->line, hex) == HASH_LEN)
		memcpy(out, s->line, HASH_LEN);
	else if (s->line_len != 1 || s->line[0] != '-')
		return -EPROTO;
	s->nhashes++;
	s->line_len = 0;
	return 0;
}

static int hash_bytes(struct diff_side *s, const uint8_t *p, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (p[i] == '\n') {
			int rc;

			s->line[s->line_len] = '\0';
			rc = hash_line(s);
			if (rc < 0)
				return rc;
		} else if (s->line_len == HASH_LEN) {
			return -EPROTO;
		} else {
			s->line[s->line_len++] = (char)p[i];
		}
	}
	return 0;
}

/* END: all that was asked for must have come. */
static int side_complete(struct diff_side *s)
{
	if (!s->hashes)
		return changes_end(&s->changes);
	return s->line_len == 0 && s->nhashes == s->d->batch && s->end_sent ? 0 : -EPROTO;
}

static int side_frame(struct diff_side *s, const struct frame *f)
{
	int rc;

	if (f->type == FRAME_OK && !s->ok) {
		s->ok = true;
		loop_timer_cancel(&s->silence);
		return 0;
	}
	if (f->type == FRAME_DATA_OUT && s->ok)
		return s->hashes ? hash_bytes(s, f->payload, f->len)
				 : changes_feed(&s->changes, f->payload, f->len);
	if (f->type != FRAME_END_OUT || !s->ok)
		return -EPROTO;
	rc = side_complete(s);
	if (rc < 0)
		return rc;
	agent_release(s->s);
	s->s = NULL;
	s->done = true;
	return 0;
}

static void side_refused(struct diff_side *s, const struct frame *f)
{
	struct agent_failure why;

	agent_failure_parse(f, &why);
	if (strcmp(why.code, "too_many_requests") == 0) {
		diff_error(s->d, -E2BIG);
		return;
	}
	if (why.status == 400)
		why.field = "path";
	diff_fail(s->d, &why);
}

/* From the beginning of its answer on the time is that of all; a guest has less until then. */
static void side_await(struct diff_side *s)
{
	loop_timer_set(&s->d->daemon->loop, &s->silence, s->sb->d->config.ping_after_s * SECOND_NS);
}

static void side_on_silence(struct loop_timer *t)
{
	struct agent_failure why = {.status = 502, .code = "agent_error"};
	struct diff_side *s = t->arg;
	struct sandbox *sb = s->sb;

	if (sandbox_is_ending(sb))
		return;
	snprintf(why.message, sizeof(why.message), "the guest's agent did not answer");
	diff_fail(s->d, &why);
	probe_start(sb);
}

/* Sends as many of the paths as fit. */
static void side_feed(struct diff_side *s)
{
	struct diff *d = s->d;

	while (s->sent < d->to) {
		const struct compare_item *it = &d->result.all[s->sent];
		size_t left = strlen(it->path) + 1 - s->offset, room = agent_room(s->s);
		size_t n = left < room ? left : room;

		if (it->kind != COMPARE_CONTENT) {
			s->sent++;
			continue;
		}
		if (room == 0)
			return;
		agent_send(s->s, FRAME_DATA_IN, it->path + s->offset, n);
		s->offset += n;
		if (n == left) {
			s->sent++;
			s->offset = 0;
		}
	}
	if (s->end_sent)
		return;
	agent_send(s->s, FRAME_END_IN, NULL, 0);
	s->end_sent = true;
	side_await(s);
}

static void side_on_stream(struct agent_stream *stream)
{
	struct diff_side *s = stream->user;
	struct frame f;
	int rc;

	if (s->hashes)
		side_feed(s);
	while (s->s && (rc = agent_next(stream, &f)) != 0) {
		if (rc == 1 && f.type == FRAME_ERROR) {
			side_refused(s, &f);
			return;
		}
		if (rc < 0 && sandbox_is_ending(s->sb))
			return;
		if (rc == 1)
			rc = side_frame(s, &f);
		if (rc < 0) {
			diff_error(s->d, rc);
			return;
		}
	}
	if (s->d->side[0].done && s->d->side[1].done && !s->d->over)
		diff_step(s->d);
}

static void side_on_sandbox_end(struct sandbox_user *u, const char *reason)
{
	struct diff_side *s = u->arg;

	diff_over(s->d);
	reply_ended(s->d->r, reason);
}

/* A new stream: also while the guest is frozen for a fork. False: answered. */
static bool side_ask(struct diff_side *s, uint8_t type, const char *text)
{
	struct agent_failure why = {.status = 503, .code = "sandbox_unreachable"};
	struct err err = {0};

	s->ok = s->done = false;
	s->s = agent_open_new(&s->sb->agent, side_on_stream, s, &err);
	if (!s->s) {
		snprintf(why.message, sizeof(why.message), "%s", err.msg);
		diff_fail(s->d, &why);
		return false;
	}
	agent_send(s->s, type, text, strlen(text));
	side_await(s);
	return true;
}

/* --- steps ------------------------------------------------------------------------------- */

/* What had to be hashed is either the same, and no difference, or modified. */
static void diff_take_hashes(struct diff *d)
{
	size_t n = 0;

	for (size_t i = d->from; i < d->to; i++) {
		struct compare_item *it = &d->result.all[i];
		const char *a = d->side[0].hashes + n * HASH_LEN;
		const char *b = d->side[1].hashes + n * HASH_LEN;

		if (it->kind != COMPARE_CONTENT)
			continue;
		/* Without a hash (it is gone by now, or cannot be read) it is not known the same.
		 */
		if (!a[0] || memcmp(a, b, HASH_LEN) != 0)
			it->kind = COMPARE_MODIFIED;
		n++;
	}
	d->from = d->to;
}

/* The next items whose paths fit in one request. */
static void diff_next_batch(struct diff *d)
{
	size_t bytes = 0;

	d->batch = 0;
	for (d->to = d->from; d->to < d->result.n && bytes < LIMIT_HASH_BYTES; d->to++) {
		if (d->result.all[d->to].kind != COMPARE_CONTENT)
			continue;
		bytes += strlen(d->result.all[d->to].path) + 1;
		d->batch++;
	}
}

static ssize_t diff_pull(struct request *r, char *out, size_t max)
{
	struct diff *d = r->state;
	ssize_t n = diff_text_take(&d->text, out, max);

	return n < 0 ? PULL_ABORT : n ? n : PULL_END;
}

/* The client sets the pace from here on: what is kept for it is its account's, and no place. */
static bool diff_hold(struct diff *d)
{
	size_t n = d->result.cap * sizeof(*d->result.all);

	for (int i = 0; i < 2; i++)
		n += d->side[i].changes.bytes +
		     d->side[i].changes.cap * sizeof(*d->side[i].changes.all);
	if (held_take(intake_held(d->r), n) < 0)
		return false;
	d->held = n;
	held_give_place(&d->place);
	return true;
}

/* In one piece when it is short. */
static void diff_answer(struct diff *d)
{
	int rc = diff_text_begin(&d->text, &d->result, d->paths);

	diff_over(d);
	if (rc < 0) {
		reply_json(d->r, 500, NULL);
	} else if (d->text.ended) {
		http_reply(d->r, 200, "application/json", buf_data(&d->text.out),
			   buf_len(&d->text.out), NULL);
	} else if (!diff_hold(d)) {
		reply_overloaded(d->r);
	} else {
		d->r->ops = &diff_stream_ops;
		http_reply_stream(d->r, 200, "application/json", -1, NULL);
	}
}

/* All that can be known of the lists is: what else there is to know is in the files. */
static void diff_ask_hashes(struct diff *d)
{
	diff_next_batch(d);
	if (d->batch == 0) {
		diff_answer(d);
		return;
	}
	for (int i = 0; i < 2; i++) {
		struct diff_side *s = &d->side[i];

		free(s->hashes);
		s->hashes = calloc(d->batch, HASH_LEN);
		s->nhashes = s->line_len = s->offset = 0;
		s->sent = d->from;
		s->end_sent = false;
		if (!s->hashes) {
			diff_error(d, -ENOMEM);
			return;
		}
	}
	for (int i = 0; i < 2 && side_ask(&d->side[i], FRAME_HASHES, "{}"); i++)
		side_feed(&d->side[i]);
}

static void diff_on_work(struct loop_timer *t)
{
	struct diff *d = t->arg;
	int rc = compare_step(&d->result);

	if (rc < 0)
		diff_error(d, rc);
	else if (rc)
		loop_timer_set(&d->daemon->loop, &d->work, 0);
	else
		diff_ask_hashes(d);
}

/* Both sides have done what they were asked for. */
static void diff_step(struct diff *d)
{
	int rc;

	if (d->side[0].hashes) {
		diff_take_hashes(d);
		diff_ask_hashes(d);
		return;
	}
	rc = compare_begin(&d->result, &d->side[0].changes, &d->side[1].changes);
	if (rc < 0)
		diff_error(d, rc);
	else
		loop_timer_set(&d->daemon->loop, &d->work, 0);
}

static void diff_on_limit(struct loop_timer *t)
{
	struct agent_failure why = {.status = 502, .code = "agent_error"};

	snprintf(why.message, sizeof(why.message), "the guests took more than %u s to compare",
		 (unsigned int)(DIFF_LIMIT_NS / SECOND_NS));
	diff_fail(t->arg, &why);
}

static void diff_end(struct request *r)
{
	struct diff *d = r->state;

	diff_over(d);
	held_give_place(&d->place);
	held_give(intake_held(r), d->held);
	for (int i = 0; i < 2; i++) {
		changes_free(&d->side[i].changes);
		free(d->side[i].hashes);
	}
	compare_free(&d->result);
	diff_text_free(&d->text);
	json_decref(d->paths);
	free(d);
}

static void diff_start(struct diff *d, struct sandbox *a, struct sandbox *b)
{
	_cleanup_free char *text = NULL;
	json_t *o;

	if (a == b) {
		diff_answer(d);
		return;
	}
	o = json_pack("{s:O}", "paths", d->paths);
	text = json_text(o);
	json_decref(o);
	if (!text) {
		diff_error(d, -ENOMEM);
		return;
	}
	if (strlen(text) > FRAME_PAYLOAD_MAX) {
		diff_over(d);
		reply_invalid(d->r, "path", "the paths are longer than %u bytes in all",
			      FRAME_PAYLOAD_MAX);
		return;
	}
	for (int i = 0; i < 2; i++)
		sandbox_add_user(d->side[i].sb, &d->side[i].user, side_on_sandbox_end, &d->side[i]);
	loop_timer_set(&d->daemon->loop, &d->limit, DIFF_LIMIT_NS);
	if (side_ask(&d->side[0], FRAME_CHANGES, text))
		side_ask(&d->side[1], FRAME_CHANGES, text);
}

void diff_submit(struct sandbox *a, struct sandbox *b, struct request *r, json_t *paths)
{
	struct held *places =
		owners_part(&a->d->owners, a->d->owners.diffs, r->owner, &a->d->diffs);
	struct diff *d;

	if (held_take(places, 1) < 0) {
		reply_error(r, 429, "too_many_requests", "too many comparisons are under way",
			    "wait for one to end", NULL);
		json_decref(paths);
		return;
	}
	d = calloc(1, sizeof(*d));
	if (!d) {
		held_give(places, 1);
		reply_json(r, 500, NULL);
		json_decref(paths);
		return;
	}
	d->daemon = a->d;
	d->place = places;
	d->r = r;
	d->paths = paths;
	d->limit = (struct loop_timer){.fn = diff_on_limit, .arg = d};
	d->work = (struct loop_timer){.fn = diff_on_work, .arg = d};
	d->side[0].sb = a;
	d->side[1].sb = b;
	for (int i = 0; i < 2; i++) {
		d->side[i].d = d;
		d->side[i].silence = (struct loop_timer){.fn = side_on_silence, .arg = &d->side[i]};
		changes_init(&d->side[i].changes);
	}
	r->ops = &diff_ops;
	r->state = d;
	diff_start(d, a, b);
}
