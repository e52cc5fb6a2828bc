/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns. Invariants: a turn is in the list of its line, or running, or neither; `running` counts
 * the second kind, of all, and of each line. A line is there as long as a turn of it.
 */
#include "daemon/turns.h"
#include "daemon/limits.h"
#include "lib/cleanup.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Each turn that nothing came of takes so many that were well. */
#define STRIKE     4u
#define STRIKE_MAX 64u

struct turn_line {
	struct list link, waiting;
	char owner[OWNER_LEN + 1], name[TURN_LINE_MAX];
	unsigned int turns, running;
	unsigned int strikes;
	uint64_t served; /* turns->served when it was served last */
};

void turns_init(struct turns *ts, struct loop *loop, unsigned int max)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	*ts = (struct turns){.loop = loop, .max = max ? max : 2 * (unsigned int)(n < 1 ? 1 : n)};
	list_init(&ts->lines);
}

/* --- whose turn it is -------------------------------------------------------------------- */

struct owner_count {
	unsigned int running;
	uint64_t served;
};

static struct owner_count count_owner(const struct turns *ts, const char *owner)
{
	struct owner_count c = {0};

	list_for_each (l, &ts->lines, struct turn_line, link) {
		if (strcmp(l->owner, owner) != 0)
			continue;
		c.running += l->running;
		if (l->served > c.served)
			c.served = l->served;
	}
	return c;
}

static bool may_run(const struct turns *ts, const struct turn_line *l)
{
	if (list_empty(&l->waiting))
		return false;
	return l->strikes == 0 || (l->running == 0 && ts->silent < (ts->max + 1) / 2);
}

static uint64_t first_since(const struct turn_line *l)
{
	return list_entry(l->waiting.next, struct turn, link)->since;
}

/* Of one owner. */
static bool goes_before(const struct turn_line *a, const struct turn_line *b)
{
	if (a->running != b->running)
		return a->running < b->running;
	if (a->served != b->served)
		return a->served < b->served;
	return first_since(a) < first_since(b);
}

static bool owner_before(const struct owner_count *a, const struct owner_count *b)
{
	return a->running != b->running ? a->running < b->running : a->served < b->served;
}

/*
 * The line whose turn is next, or NULL. An owner's lines are mostly beside each other in the list,
 * so that he is counted once and not for each of them.
 */
static struct turn_line *next_line(const struct turns *ts)
{
	struct owner_count best_count = {0}, count = {0};
	struct turn_line *best = NULL;
	const char *counted = NULL;

	list_for_each (l, &ts->lines, struct turn_line, link) {
		bool same;

		if (!may_run(ts, l))
			continue;
		if (!counted || strcmp(counted, l->owner) != 0)
			count = count_owner(ts, l->owner);
		counted = l->owner;
		same = best && strcmp(best->owner, l->owner) == 0;
		if (best && (same ? !goes_before(l, best) : !owner_before(&count, &best_count)))
			continue;
		best = l;
		best_count = count;
	}
	return best;
}

static void turns_pump(struct turns *ts)
{
	struct turn_line *l;

	if (ts->pumping)
		return; /* below, in go(): the loop there goes on */
	ts->pumping = true;
	while (ts->running < ts->max && (l = next_line(ts))) {
		struct turn *t = list_entry(l->waiting.next, struct turn, link);

		list_del(&t->link);
		t->running = true;
		t->counts_silent = l->strikes > 0;
		ts->silent += t->counts_silent;
		ts->running++;
		l->running++;
		l->served = ++ts->served;
		loop_timer_set(ts->loop, &t->timer, TURN_NS);
		t->go(t);
	}
	ts->pumping = false;
}

/* --- one turn ---------------------------------------------------------------------------- */

static void turn_end(struct turn *t)
{
	t->running = false;
	loop_timer_cancel(&t->timer);
	t->turns->silent -= t->counts_silent;
	t->turns->running--;
	t->line->running--;
	turns_pump(t->turns);
}

/* By how much it has more now. */
static unsigned int line_strike(struct turn_line *l)
{
	unsigned int n = STRIKE_MAX - l->strikes < STRIKE ? STRIKE_MAX - l->strikes : STRIKE;

	l->strikes += n;
	return n;
}

static void line_forgive(struct turn_line *l, unsigned int n)
{
	l->strikes -= n < l->strikes ? n : l->strikes;
}

static void turn_on_timer(struct loop_timer *timer)
{
	struct turn *t = timer->arg;

	t->struck = line_strike(t->line);
	turn_end(t);
}

/* Into the list, where the others of the owner are. */
static void line_give(struct turns *ts, struct turn_line *line, const char *owner)
{
	struct list *beside = &ts->lines;

	list_for_each (l, &ts->lines, struct turn_line, link)
		if (strcmp(l->owner, owner) == 0)
			beside = &l->link;
	snprintf(line->owner, sizeof(line->owner), "%s", owner);
	list_add_tail(beside, &line->link);
}

/* Found or made. */
static struct turn_line *line_get(struct turns *ts, const char *owner, const char *name)
{
	struct turn_line *line;

	list_for_each (l, &ts->lines, struct turn_line, link)
		if (strcmp(l->name, name) == 0)
			return l;
	line = calloc(1, sizeof(*line));
	if (!line)
		return NULL;
	list_init(&line->waiting);
	snprintf(line->name, sizeof(line->name), "%s", name);
	line_give(ts, line, owner);
	return line;
}

int turn_init(struct turn *t, struct turns *ts, turn_fn *go, const char *owner, const char *line)
{
	*t = (struct turn){.turns = ts, .go = go, .timer = {.fn = turn_on_timer, .arg = t}};
	list_init(&t->link);
	t->line = line_get(ts, owner, line);
	if (!t->line)
		return -ENOMEM;
	t->line->turns++;
	return 0;
}

void turn_give(struct turn *t, const char *owner)
{
	list_del(&t->line->link);
	line_give(t->turns, t->line, owner);
}

void turn_wait(struct turn *t)
{
	t->since = ++t->turns->arrived;
	list_add_tail(&t->line->waiting, &t->link);
	turns_pump(t->turns);
}

void turn_done(struct turn *t, bool well)
{
	list_del(&t->link);
	if (t->running) {
		if (well)
			line_forgive(t->line, 1);
		else
			line_strike(t->line);
		turn_end(t);
	} else if (t->struck && well) {
		line_forgive(t->line, t->struck);
		turns_pump(t->turns); /* its line may have more now */
	}
	t->struck = 0;
}

void turn_drop(struct turn *t)
{
	list_del(&t->link);
	if (t->running)
		turn_end(t);
}

void turn_free(struct turn *t)
{
	if (!t->line)
		return;
	turn_drop(t);
	if (--t->line->turns == 0) {
		list_del(&t->line->link);
		free(t->line);
	}
	t->line = NULL;
}
