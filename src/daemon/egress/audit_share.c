/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Invariants: a timer is armed while something is held. due_ns is when all that was written
 * would have been at an even pace; how far it is ahead of now is what was written at once. A line
 * is there as long as a share of it, an owner as long as the daemon.
 */
#include "daemon/egress/audit_share.h"
#include "daemon/limits.h"
#include "daemon/owner.h"
#include "daemon/sandbox.h"
#include "lib/io.h"
#include "lib/json_safe.h"

#include <string.h>

/* Those that are not told apart: denials, what was allowed, ends. */
#define SHARE_REST 3u

struct share_held {
	json_t *json;  /* the first one */
	json_t *until; /* time of the last */
	uint64_t n, up, down;
	unsigned int kind; /* a denial, what was allowed, an end */
};

struct share_line {
	struct list link;
	char name[SANDBOX_ID_LEN + 1];
	unsigned int refs;
	uint64_t due_ns;
};

struct share_owner {
	struct list link;
	struct audit_shares *all;
	char name[OWNER_LEN + 1];
	uint64_t due_ns;
	struct share_held held[SHARE_REST];
	struct loop_timer timer;
};

struct audit_share {
	struct audit_shares *all;
	struct share_line *line;
	struct share_owner *owner;
	struct loop_timer timer;
	unsigned int refs;
	struct share_held held[SHARE_HELD + SHARE_REST]; /* the last ones: the rest */
	unsigned int nheld;                              /* of those that are told apart */
};

/* --- writing ----------------------------------------------------------------------------- */

static bool may_write(const uint64_t *due_ns, uint64_t now, uint64_t ahead_ns)
{
	return *due_ns < now + ahead_ns;
}

static void has_written(uint64_t *due_ns, uint64_t now, uint64_t each_ns)
{
	*due_ns = (*due_ns < now ? now : *due_ns) + each_ns;
}

static bool owner_take(struct share_owner *o, uint64_t now)
{
	if (!o->all->several)
		return true;
	if (!may_write(&o->due_ns, now, SHARE_OWNER_BURST * SHARE_OWNER_NS))
		return false;
	has_written(&o->due_ns, now, SHARE_OWNER_NS);
	return true;
}

/* Whether one more may be written now. */
static bool share_take(struct audit_share *s)
{
	uint64_t now = io_now_ns();

	if (!may_write(&s->line->due_ns, now, SHARE_BURST * SHARE_NS) || !owner_take(s->owner, now))
		return false;
	has_written(&s->line->due_ns, now, SHARE_NS);
	return true;
}

static bool put_number(json_t *o, const char *name, uint64_t n)
{
	return json_object_set_new(o, name, json_integer((json_int_t)n)) == 0;
}

static void held_free(struct share_held *h)
{
	json_decref(h->json);
	json_decref(h->until);
	*h = (struct share_held){0};
}

static void write_held(struct audit *a, struct share_held *h)
{
	_cleanup_free char *text = NULL;
	bool end = json_object_get(h->json, "bytes_up") != NULL;

	if (h->json && put_number(h->json, "suppressed", h->n) &&
	    json_object_set(h->json, "until", h->until) == 0 &&
	    (!end || (put_number(h->json, "bytes_up", h->up) &&
		      put_number(h->json, "bytes_down", h->down))))
		text = json_text_ascii(h->json);
	audit_write(a, text, text ? strlen(text) : 0, h->n);
	held_free(h);
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

/* Without what is of one sandbox alone, and with whose it is, where that has a name. */
static json_t *json_of_owner(const struct share_owner *o, const json_t *json)
{
	json_t *copy = json_of_rest(json);

	if (copy && json_object_set_new(copy, "sandbox", json_null()) == 0 &&
	    json_object_set_new(copy, "exec", json_null()) == 0 && put_number(copy, "id", 0) &&
	    put_number(copy, "stream", 0) &&
	    (!o->name[0] || json_object_set_new(copy, "owner", json_string(o->name)) == 0))
		return copy;
	json_decref(copy);
	return NULL;
}

/* What was held of a sandbox is the owner's from here on. */
static void owner_hold(struct share_owner *o, struct share_held *h)
{
	struct share_held *to = &o->held[h->kind];

	if (!to->n)
		to->json = json_of_owner(o, h->json);
	to->n += h->n;
	to->up += h->up;
	to->down += h->down;
	json_incref(h->until);
	json_decref(to->until);
	to->until = h->until;
	held_free(h);
	if (!loop_timer_armed(&o->timer))
		loop_timer_set(o->all->loop, &o->timer, SHARE_HOLD_NS);
}

static void owner_flush(struct share_owner *o)
{
	for (unsigned int i = 0; i < SHARE_REST; i++)
		if (o->held[i].n)
			write_held(o->all->audit, &o->held[i]);
	loop_timer_cancel(&o->timer);
}

static void share_flush(struct audit_share *s)
{
	uint64_t now = io_now_ns();

	for (unsigned int i = 0; i < SHARE_HELD + SHARE_REST; i++) {
		struct share_held *h = &s->held[i];

		if (h->n && owner_take(s->owner, now))
			write_held(s->all->audit, h);
		else if (h->n)
			owner_hold(s->owner, h);
	}
	s->nheld = 0;
	loop_timer_cancel(&s->timer);
}

static void on_timer(struct loop_timer *t)
{
	share_flush(t->arg);
}

static void owner_on_timer(struct loop_timer *t)
{
	owner_flush(t->arg);
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

static struct share_held *held_of(struct audit_share *s, const struct record *r)
{
	unsigned int kind = r->end ? 2 : r->allow;
	struct share_held *h = &s->held[SHARE_HELD + kind];

	for (unsigned int i = 0; i < s->nheld; i++)
		if (alike(s->held[i].json, r->json))
			return &s->held[i];
	if (s->nheld < SHARE_HELD) {
		h = &s->held[s->nheld++];
		h->json = json_incref(r->json);
	} else if (!h->json) {
		h->json = json_of_rest(r->json);
	}
	h->kind = kind;
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
	s->all->audit->suppressed++;
	if (!loop_timer_armed(&s->timer))
		loop_timer_set(s->all->loop, &s->timer, SHARE_HOLD_NS);
}

void audit_share_record(struct audit_share *s, const struct record *r, const char *text, size_t len)
{
	audit_count(s->all->audit, r);
	if (share_take(s))
		audit_write(s->all->audit, text, len, 1);
	else
		share_hold(s, r);
}

/* --- life -------------------------------------------------------------------------------- */

void audit_shares_init(struct audit_shares *all, struct audit *a, struct loop *loop, bool several)
{
	*all = (struct audit_shares){.audit = a, .loop = loop, .several = several};
	list_init(&all->lines);
	list_init(&all->owners);
}

void audit_shares_free(struct audit_shares *all)
{
	if (!all->audit)
		return;
	list_for_each_safe (o, &all->owners, struct share_owner, link) {
		owner_flush(o);
		list_del(&o->link);
		free(o);
	}
}

/* Found or made. */
static struct share_owner *owner_get(struct audit_shares *all, const char *name)
{
	struct share_owner *o;

	list_for_each (it, &all->owners, struct share_owner, link)
		if (strcmp(it->name, name) == 0)
			return it;
	o = calloc(1, sizeof(*o));
	if (!o)
		return NULL;
	o->all = all;
	snprintf(o->name, sizeof(o->name), "%s", name);
	o->timer = (struct loop_timer){.fn = owner_on_timer, .arg = o};
	list_add_tail(&all->owners, &o->link);
	return o;
}

/* Likewise, with one reference more. */
static struct share_line *line_get(struct audit_shares *all, const char *name)
{
	struct share_line *l = NULL;

	list_for_each (it, &all->lines, struct share_line, link)
		if (strcmp(it->name, name) == 0)
			l = it;
	if (!l && (l = calloc(1, sizeof(*l)))) {
		snprintf(l->name, sizeof(l->name), "%s", name);
		list_add_tail(&all->lines, &l->link);
	}
	if (l)
		l->refs++;
	return l;
}

static void line_put(struct share_line *l)
{
	if (--l->refs)
		return;
	list_del(&l->link);
	free(l);
}

struct audit_share *audit_share_new(struct audit_shares *all, const char *owner, const char *line)
{
	struct share_owner *o = owner_get(all, owner);
	struct share_line *l = o ? line_get(all, line) : NULL;
	struct audit_share *s = l ? calloc(1, sizeof(*s)) : NULL;

	if (!s) {
		if (l)
			line_put(l);
		return NULL;
	}
	*s = (struct audit_share){.all = all, .line = l, .owner = o, .refs = 1};
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
	line_put(s->line);
	free(s);
}
