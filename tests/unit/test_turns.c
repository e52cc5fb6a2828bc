/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Turns: order and number, an end that comes while waiting, at once, or never.
 */
#include "unit.h"

#include "daemon/turns.h"
#include "lib/io.h"

#define PEOPLE 8

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
		turn_done(t);
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
	for (int i = 0; i < PEOPLE; i++) {
		r->p[i].log = r->log;
		r->p[i].n = &r->n;
		r->p[i].id = i;
		turn_init(&r->p[i].turn, &r->turns, on_turn);
	}
}

static void room_free(struct room *r)
{
	for (int i = 0; i < PEOPLE; i++)
		turn_done(&r->p[i].turn);
	assert_int_equal(r->turns.running, 0);
	assert_true(!r->loop.timers);
	loop_free(&r->loop);
}

static void test_order_and_number(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 2);
	for (int i = 0; i < PEOPLE; i++)
		turn_wait(&r.p[i].turn);
	assert_int_equal(r.n, 2);
	turn_done(&r.p[3].turn); /* has waited in vain */
	turn_done(&r.p[1].turn);
	turn_done(&r.p[1].turn);
	assert_int_equal(r.n, 3);
	assert_int_equal(r.log[2], 2);
	turn_done(&r.p[0].turn);
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
	turn_wait(&r.p[0].turn);
	for (int i = 1; i < PEOPLE; i++) {
		r.p[i].ends_at_once = true;
		turn_wait(&r.p[i].turn);
	}
	assert_int_equal(r.n, 1);
	turn_done(&r.p[0].turn);
	assert_int_equal(r.n, PEOPLE);
	for (int i = 0; i < PEOPLE; i++)
		assert_int_equal(r.log[i], i);
	room_free(&r);
}

static void test_one_that_never_ends_holds_up_nobody(void **state)
{
	struct room r;

	(void)state;
	room_init(&r, 1);
	turn_wait(&r.p[0].turn);
	turn_wait(&r.p[1].turn);
	assert_int_equal(r.n, 1);
	r.p[0].turn.timer.at_ns = io_now_ns(); /* its time is over */
	assert_int_equal(loop_run_once(&r.loop, 1000), 0);
	assert_int_equal(r.n, 2);
	assert_false(r.p[0].turn.running);
	turn_done(&r.p[0].turn);
	assert_int_equal(r.turns.running, 1);
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
		cmocka_unit_test(test_at_least_two_for_a_processor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
