/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns: order and number, an end that comes while waiting, at once, or never; that each owner and
 * each line has its share, and silent ones take nothing from others.
 */
#include "unit.h"

#include "daemon/limits.h"
#include "daemon/turns.h"
#include "lib/io.h"

#define PEOPLE 32

uint64_t __real_io_now_ns(void);
uint64_t __wrap_io_now_ns(void);

static uint64_t played_ns; /* 0: the time is the real one */

uint64_t __wrap_io_now_ns(void)
{
	return played_ns ? played_ns : __real_io_now_ns();
}

struct person {
	struct turn turn;
	int *log, *n, id;
	bool ends_at_once;
};

static void on_turn(struct turn *t)
{
	struct person *p = list_entry(t, struct person, turn);

	p->log[(*p->n)++] = p->id;
	if (p->ends_at_once)
		turn_done(t, true);
}

struct room {
	struct loop loop;
	struct turns turns;
	struct person p[PEOPLE];
	int log[PEOPLE], n;
};

static void room_init(struct room *r, unsigned int max)
{
	*r = (struct room){0};
	assert_int_equal(loop_init(&r->loop), 0);
	turns_init(&r->turns, &r->loop, max);
}

/* The next n persons, beginning with first, wait. */
static void wait_in(struct room *r, const char *owner, const char *line, int first, int n)
{
	for (int i = first; i < first + n; i++) {
		struct person *p = &r->p[i];

		p->log = r->log;
		p->n = &r->n;
		p->id = i;
		assert_int_equal(turn_init(&p->turn, &r->turns, on_turn, owner, line), 0);
	}
	for (int i = first; i < first + n; i++)
		turn_wait(&r->p[i].turn);
}

static void room_free(struct room *r)
{
	for (int i = 0; i < PEOPLE; i++)
		turn_free(&r->p[i].turn);
	assert_int_equal(r->turns.running, 0);
	assert_int_equal(r->turns.silent, 0);
	assert_true(list_empty(&r->turns.lines));
	assert_true(!r->loop.timers);
	loop_free(&r->loop);
}

/* The time of a turn that runs is over. */
static void silent(struct room *r, int id)
{
	assert_true(r->p[id].turn.running);
	r->p[id].turn.timer.at_ns = io_now_ns();
	assert_int_equal(loop_run_once(&r->loop, 1000), 0);
	assert_false(r->p[id].turn.running);
}

static int running(const struct room *r, int first, int n)
{
	int all = 0;

	for (int i = first; i < first + n; i++)
		all += r->p[i].turn.running;
	return all;
}

static void test_order_and_number(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 2);
	wait_in(&r, "", "a", 0, 8);
	assert_int_equal(r.n, 2);
	turn_done(&r.p[3].turn, false); /* has waited in vain */
	turn_done(&r.p[1].turn, true);
	turn_done(&r.p[1].turn, true);
	assert_int_equal(r.n, 3);
	assert_int_equal(r.log[2], 2);
	turn_done(&r.p[0].turn, true);
	assert_int_equal(r.n, 4);
	assert_int_equal(r.log[3], 4);
	assert_int_equal(r.turns.running, 2);
	room_free(&r);
}

static void test_many_that_end_at_once(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 1);
	wait_in(&r, "", "a", 0, 1);
	for (int i = 1; i < 8; i++)
		r.p[i].ends_at_once = true;
	wait_in(&r, "", "a", 1, 7);
	assert_int_equal(r.n, 1);
	turn_done(&r.p[0].turn, true);
	assert_int_equal(r.n, 8);
	for (int i = 0; i < 8; i++)
		assert_int_equal(r.log[i], i);
	room_free(&r);
}

static void test_one_that_never_ends_holds_up_nobody(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 1);
	wait_in(&r, "", "a", 0, 2);
	assert_int_equal(r.n, 1);
	silent(&r, 0);
	assert_int_equal(r.n, 2);
	assert_false(r.p[0].turn.running);
	turn_done(&r.p[0].turn, true);
	assert_int_equal(r.turns.running, 1);
	room_free(&r);
}

static void test_owners_take_turns(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 2);
	wait_in(&r, "many", "m1", 0, 4);
	wait_in(&r, "many", "m2", 4, 4);
	wait_in(&r, "few", "f", 8, 2);
	assert_int_equal(r.n, 2);
	turn_done(&r.p[0].turn, true);
	assert_int_equal(r.log[2], 8); /* who has none, and not who came first */
	turn_done(&r.p[8].turn, true);
	assert_int_equal(r.log[3], 9);
	turn_done(&r.p[1].turn, true);
	assert_int_equal(r.log[4], 4); /* a line that has none */
	turn_done(&r.p[9].turn, true);
	assert_int_equal(r.log[5], 2); /* served longest ago, in its own order */
	assert_int_equal(r.turns.running, 2);
	room_free(&r);
}

/* Those of one owner who only come one by one, as creates do, go by arrival. */
static void test_lines_of_one_go_by_arrival(void **state)
{
	static const char *const names[] = {"a", "b", "c", "d", "e"};
	struct room r;

	(void)state;
	room_init(&r, 1);
	for (int i = 0; i < 5; i++)
		wait_in(&r, "", names[i], i, 1);
	for (int i = 0; i < 5; i++) {
		assert_int_equal(r.n, i + 1);
		assert_int_equal(r.log[i], i);
		turn_done(&r.p[i].turn, true);
	}
	room_free(&r);
}

static void test_a_silent_line_has_one_at_a_time(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 4);
	wait_in(&r, "", "silent", 0, 12);
	assert_int_equal(running(&r, 0, 12), 4);
	for (int i = 0; i < 4; i++)
		silent(&r, i);
	assert_int_equal(running(&r, 4, 8), 1);
	wait_in(&r, "", "other", 12, 4); /* finds room at once, although they are one owner's */
	assert_int_equal(running(&r, 12, 4), 3);
	turn_done(&r.p[12].turn, true);
	assert_int_equal(running(&r, 12, 4), 3);
	room_free(&r);
}

static void test_silent_lines_have_half(void **state)
{
	static const char *const names[] = {"a", "b", "c", "d"};
	struct room r;

	(void)state;
	room_init(&r, 4);
	for (int i = 0; i < 4; i++)
		wait_in(&r, names[i], names[i], 3 * i, 1);
	for (int i = 0; i < 4; i++)
		silent(&r, 3 * i);
	for (int i = 0; i < 4; i++)
		wait_in(&r, names[i], names[i], 3 * i + 1, 2);
	assert_int_equal(running(&r, 0, 12), 2);
	assert_int_equal(r.turns.silent, 2);
	wait_in(&r, "e", "e", 12, 4);
	assert_int_equal(running(&r, 12, 4), 2);
	silent(&r, r.log[4]); /* the first of the two: another silent line has its turn */
	assert_int_equal(r.turns.silent, 2);
	assert_int_equal(running(&r, 0, 12), 2);
	room_free(&r);
}

static void test_a_line_that_is_well_again(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 2);
	wait_in(&r, "", "a", 0, 16);
	silent(&r, 0);
	for (int i = 1; i <= 4; i++) { /* 1 ran already */
		assert_int_equal(running(&r, 0, 16), 1);
		turn_done(&r.p[i].turn, true);
	}
	assert_int_equal(running(&r, 5, 11), 2);
	room_free(&r);
}

/* Late is not silent: it is taken back, also from a line that has no place to give. */
static void test_who_is_late_is_forgiven(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 4);
	wait_in(&r, "", "a", 0, 16);
	for (int i = 0; i < 4; i++)
		silent(&r, i);
	assert_int_equal(running(&r, 4, 12), 1);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(running(&r, 4, 12), 1);
		turn_done(&r.p[i].turn, true);
		turn_done(&r.p[i].turn, true);
	}
	assert_int_equal(running(&r, 4, 12), 4);
	room_free(&r);
}

/* Nothing has come of it: at its end before or behind its time, or when it is given up late. */
static void test_who_fails_is_silent(void **state)
{
	struct room r;

	(void)state;
	for (int how = 0; how < 3; how++) {
		room_init(&r, 4);
		wait_in(&r, "", "a", 0, 16);
		if (how > 0)
			silent(&r, 0);
		if (how < 2)
			turn_done(&r.p[0].turn, false);
		else
			turn_drop(&r.p[0].turn);
		for (int i = 1; i < 4; i++)
			turn_done(&r.p[i].turn, true);
		assert_true(running(&r, 4, 12) <= 2); /* one began before it was silent */
		turn_done(&r.p[4].turn, true);
		turn_done(&r.p[5].turn, true);
		assert_true(running(&r, 4, 12) > 1);
		room_free(&r);
	}
}

/* A client leaves, a waiting one's VM ends. */
static void test_who_is_dropped_is_not(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 4);
	wait_in(&r, "", "a", 0, 16);
	for (int i = 0; i < 4; i++)
		turn_drop(&r.p[i].turn);
	turn_done(&r.p[12].turn, false);
	assert_int_equal(running(&r, 4, 12), 4);
	room_free(&r);
}

/* A large fork of a guest that takes a second more than a turn has. */
static void test_slow_and_many(void **state)
{
	enum { MANY = 32, STEP_MS = 100, TAKES_MS = 6000 };
	uint64_t began[MANY] = {0}, start = 1000 * SECOND_NS, limit = DEFAULT_CREATE_S * SECOND_NS;
	int done = 0, seen = 0;
	struct room r;

	(void)state;
	played_ns = start;
	room_init(&r, 4);
	wait_in(&r, "", "a", 0, MANY);
	while (done < MANY && played_ns - start < limit) {
		for (; seen < r.n; seen++)
			began[r.log[seen]] = played_ns;
		for (int i = 0; i < MANY; i++) {
			if (!began[i] || played_ns - began[i] != TAKES_MS * (SECOND_NS / 1000))
				continue;
			turn_done(&r.p[i].turn, true);
			done++;
		}
		for (; seen < r.n; seen++)
			began[r.log[seen]] = played_ns;
		played_ns += STEP_MS * (SECOND_NS / 1000);
		assert_int_equal(loop_run_once(&r.loop, 0), 0);
	}
	assert_int_equal(done, MANY);
	room_free(&r);
	played_ns = 0;
}

/* What was made for nobody, and is somebody's later: what comes of it counts as his. */
static void test_a_line_that_is_given_away(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 2);
	r.p[0].ends_at_once = r.p[1].ends_at_once = true;
	wait_in(&r, "", "a", 0, 1);
	wait_in(&r, "", "b", 1, 1);
	turn_give(&r.p[0].turn, "his");
	wait_in(&r, "ignored", "a", 2, 3);
	assert_int_equal(running(&r, 2, 3), 2);
	wait_in(&r, "his", "c", 5, 1);
	wait_in(&r, "hers", "d", 6, 1);
	turn_done(&r.p[2].turn, true);
	assert_true(r.p[6].turn.running);
	room_free(&r);
}

static void test_at_least_two_for_a_processor(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 0);
	assert_true(r.turns.max >= 2);
	assert_int_equal(r.turns.max % 2, 0);
	room_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order_and_number),
		cmocka_unit_test(test_many_that_end_at_once),
		cmocka_unit_test(test_one_that_never_ends_holds_up_nobody),
		cmocka_unit_test(test_owners_take_turns),
		cmocka_unit_test(test_lines_of_one_go_by_arrival),
		cmocka_unit_test(test_a_silent_line_has_one_at_a_time),
		cmocka_unit_test(test_silent_lines_have_half),
		cmocka_unit_test(test_a_line_that_is_well_again),
		cmocka_unit_test(test_who_is_late_is_forgiven),
		cmocka_unit_test(test_who_fails_is_silent),
		cmocka_unit_test(test_who_is_dropped_is_not),
		cmocka_unit_test(test_slow_and_many),
		cmocka_unit_test(test_a_line_that_is_given_away),
		cmocka_unit_test(test_at_least_two_for_a_processor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
