/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Invariants: the timer is armed while something is held. due_ns is when all that was written
 * would have been, one each SHARE_NS; how far it is ahead of now is what was written at once.
 */
#include "daemon/egress/audit_share.h"
#include "daemon/limits.h"
#include "lib/io.h"
#include "lib/json_safe.h"

#include <string.h>

/* Those that are not told apart: denials, what was allowed, ends. */
#define SHARE_REST 3u

struct share_held {
	json_t *json;  /* the first one */
	json_t *until; /* time of the last */
	uint64_t n, up, down;
};

struct audit_share {
	struct audit *audit;
	struct loop *loop;
	struct loop_timer timer;
	unsigned int refs;
	uint64_t due_ns;
	struct share_held held[SHARE_HELD + SHARE_REST]; /* the last ones: the rest */
	unsigned int nheld;                              /* of those that are told apart */
};

/* --- writing ----------------------------------------------------------------------------- */

/* Whether one more may be written now. */
static bool share_take(struct audit_share *s)
{
	uint64_t now = io_now_ns();

	if (s->due_ns < now)
		s->due_ns = now;
	if (s->due_ns - now >= SHARE_BURST * SHARE_NS)
		return false;
	s->due_ns += SHARE_NS;
	return true;
}

static bool put_number(json_t *o, const char *name, uint64_t n)
{
	return json_object_set_new(o, name, json_integer((json_int_t)n)) == 0;
}

static void write_held(struct audit_share *s, struct share_held *h)
{
	_cleanup_free char *text = NULL;
	bool end = json_object_get(h->json, "bytes_up") != NULL;

	if (h->json && put_number(h->json, "suppressed", h->n) &&
	    json_object_set(h->json, "until", h->until) == 0 &&
	    (!end || (put_number(h->json, "bytes_up", h->up) &&
		      put_number(h->json, "bytes_down", h->down))))
		text = json_text_ascii(h->json);
	audit_write(s->audit, text, text ? strlen(text) : 0, h->n);
	json_decref(h->json);
	json_decref(h->until);
	*h = (struct share_held){0};
}

static void share_flush(struct audit_share *s)
{
	for (unsigned int i = 0; i < SHARE_HELD + SHARE_REST; i++)
		if (s->held[i].n)
			write_held(s, &s->held[i]);
	s->nheld = 0;
	loop_timer_cancel(&s->timer);
}

static void on_timer(struct loop_timer *t)
{
	share_flush(t->arg);
}

/* --- holding ----------------------------------------------------------------------------- */

static bool same(const json_t *a, const json_t *b, const char *name)
{
	const json_t *x = json_object_get(a, name), *y = json_object_get(b, name);

	return x == y || json_equal(x, y);
}

static bool alike(const json_t *a, const json_t *b)
{
	static const char *const names[] = {"type", "verdict", "host",   "port",
					    "rule", "reason",  "method", "why"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!same(a, b, names[i]))
			return false;
	return true;
}

/* What may differ is taken out. NULL: no memory. */
static json_t *json_of_rest(const json_t *json)
{
	static const char *const names[] = {"host", "port", "method", "address", "rule"};
	json_t *copy = json_copy((json_t *)(uintptr_t)json);

	for (size_t i = 0; copy && i < ARRAY_SIZE(names); i++)
		if (json_object_set_new(copy, names[i], i == 1 ? json_integer(0) : json_null()) <
		    0) {
			json_decref(copy);
			return NULL;
		}
	return copy;
}

static struct share_held *held_of(struct audit_share *s, const struct record *r)
{
	struct share_held *h = &s->held[SHARE_HELD + (r->end ? 2 : r->allow)];

	for (unsigned int i = 0; i < s->nheld; i++)
		if (alike(s->held[i].json, r->json))
			return &s->held[i];
	if (s->nheld < SHARE_HELD) {
		h = &s->held[s->nheld++];
		h->json = json_incref(r->json);
	} else if (!h->json) {
		h->json = json_of_rest(r->json);
	}
	return h;
}

static void share_hold(struct audit_share *s, const struct record *r)
{
	struct share_held *h = held_of(s, r);
	json_t *time = json_object_get(r->json, "time");

	h->n++;
	h->up += r->up;
	h->down += r->down;
	json_incref(time);
	json_decref(h->until);
	h->until = time;
	s->audit->suppressed++;
	if (!loop_timer_armed(&s->timer))
		loop_timer_set(s->loop, &s->timer, SHARE_HOLD_NS);
}

void audit_share_record(struct audit_share *s, const struct record *r, const char *text, size_t len)
{
	audit_count(s->audit, r);
	if (share_take(s))
		audit_write(s->audit, text, len, 1);
	else
		share_hold(s, r);
}

/* --- life -------------------------------------------------------------------------------- */

struct audit_share *audit_share_new(struct audit *a, struct loop *loop)
{
	struct audit_share *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	*s = (struct audit_share){.audit = a, .loop = loop, .refs = 1};
	s->timer = (struct loop_timer){.fn = on_timer, .arg = s};
	return s;
}

struct audit_share *audit_share_ref(struct audit_share *s)
{
	if (s)
		s->refs++;
	return s;
}

void audit_share_unref(struct audit_share *s)
{
	if (!s || --s->refs)
		return;
	share_flush(s);
	free(s);
}
