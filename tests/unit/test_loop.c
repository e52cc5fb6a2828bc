/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event loop and byte queue: order of timers, removal inside callbacks, wake-up
 * from another thread, the bound of a queue.
 */
#include "unit.h"

#include "lib/buf.h"
#include "lib/io.h"
#include "lib/loop.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

struct tick {
	struct loop_timer t;
	int id;
	int *order, *n;
};

static void on_tick(struct loop_timer *t)
{
	struct tick *k = t->arg;

	k->order[(*k->n)++] = k->id;
}

static void test_timers_in_order(void **state)
{
	static const uint64_t delay_ms[] = {9, 3, 6, 3, 1};
	static const int want[] = {4, 1, 3, 0};
	struct tick k[5];
	struct loop l;
	int order[5], n = 0;

	(void)state;
	assert_int_equal(loop_init(&l), 0);
	for (int i = 0; i < 5; i++) {
		k[i] = (struct tick){.id = i, .order = order, .n = &n};
		k[i].t.fn = on_tick;
		k[i].t.arg = &k[i];
		loop_timer_set(&l, &k[i].t, delay_ms[i] * 1000000);
	}
	loop_timer_cancel(&k[2].t);
	loop_timer_cancel(&k[2].t);
	while (n < 4)
		assert_int_equal(loop_run_once(&l, -1), 0);
	assert_memory_equal(order, want, sizeof(want));
	assert_int_equal(loop_run_once(&l, 0), 0);
	assert_int_equal(n, 4);
	loop_free(&l);
}

/* A timer that is armed again while it is the last of the list must not be linked to itself. */
static void test_timer_set_again(void **state)
{
	int order[4], n = 0;
	struct tick a = {.id = 1, .order = order, .n = &n}, b = {.id = 2, .order = order, .n = &n};
	struct loop l;

	(void)state;
	assert_int_equal(loop_init(&l), 0);
	a.t.fn = b.t.fn = on_tick;
	a.t.arg = &a;
	b.t.arg = &b;
	loop_timer_set(&l, &a.t, 1000000);
	loop_timer_set(&l, &b.t, 2000000);
	loop_timer_set(&l, &b.t, 3000000);
	loop_timer_set(&l, &b.t, 2000000);
	loop_timer_set(&l, &a.t, 4000000);
	while (n < 2)
		assert_int_equal(loop_run_once(&l, 1000), 0);
	assert_int_equal(order[0], 2);
	assert_int_equal(order[1], 1);
	assert_null(l.timers);
	loop_free(&l);
}

struct pair {
	struct loop_src src;
	struct pair *other;
	int calls;
};

/* Whoever runs first removes both: the other's event was fetched but must not be delivered. */
static void on_pair(struct loop_src *src, uint32_t events)
{
	struct pair *p = src->arg;

	(void)events;
	p->calls++;
	loop_del(&p->other->src);
	loop_del(&p->src);
}

struct again {
	struct loop *loop;
	struct loop_timer t;
	int n;
};

/* As where the clock stands still: the new time is none that is still to come. */
static void on_again(struct loop_timer *t)
{
	struct again *a = t->arg;

	if (++a->n == 100)
		return;
	loop_timer_set(a->loop, t, 0);
	t->at_ns = 1;
}

/* One that sets itself again keeps the descriptors waiting no longer than for once. */
static void test_timer_that_sets_itself(void **state)
{
	struct loop l;
	struct again a = {.loop = &l, .t = {.fn = on_again, .arg = &a}};

	(void)state;
	assert_int_equal(loop_init(&l), 0);
	loop_timer_set(&l, &a.t, 0);
	for (int i = 1; i <= 3; i++) {
		uint64_t rounds = l.rounds;

		assert_int_equal(loop_run_once(&l, 0), 0);
		assert_int_equal(a.n, i);
		assert_int_equal(l.rounds, rounds + 1);
	}
	loop_timer_cancel(&a.t);
	loop_free(&l);
}

/* As a list that is searched would take minutes for: its own processor time is over before. */
static void test_many_timers(void **state)
{
	enum { N = 200000 };
	const struct itimerval most = {.it_value = {.tv_sec = 20}}, none = {0};
	struct loop_timer *t = calloc(N, sizeof(*t));
	struct loop l;

	(void)state;
	assert_non_null(t);
	assert_int_equal(loop_init(&l), 0);
	assert_int_equal(setitimer(ITIMER_VIRTUAL, &most, NULL), 0);
	/* Each before all others; then each behind all others; and all again. */
	for (unsigned int i = 0; i < N; i++)
		loop_timer_set(&l, &t[i], (3 * N - i) * 1000000ull);
	for (unsigned int i = 0; i < N; i += 2)
		loop_timer_set(&l, &t[i], (3 * N + i) * 1000000ull);
	for (unsigned int i = 0; i < N; i++)
		loop_timer_set(&l, &t[i], (i * 7919u % N + 1) * 1000000000ull);
	for (unsigned int i = 1; i < N; i += 2)
		loop_timer_cancel(&t[i]);
	for (uint64_t last = 0, n = 0;; n++) {
		struct loop_timer *first = l.timers;

		if (!first) {
			assert_int_equal(n, N / 2);
			break;
		}
		assert_true(loop_timer_armed(first) && first->at_ns >= last);
		last = first->at_ns;
		loop_timer_cancel(first);
		assert_false(loop_timer_armed(first));
	}
	setitimer(ITIMER_VIRTUAL, &none, NULL);
	loop_free(&l);
	free(t);
}

static void test_a_fork_has_no_timers(void **state)
{
	struct tick {
		struct loop_timer t;
	} k[3] = {0};
	struct loop l;

	(void)state;
	assert_int_equal(loop_init(&l), 0);
	for (int i = 0; i < 3; i++)
		loop_timer_set(&l, &k[i].t, 1000000000ull * (unsigned)(3 - i));
	assert_int_equal(loop_fork_child(&l), 0);
	for (int i = 0; i < 3; i++)
		assert_false(loop_timer_armed(&k[i].t));
	assert_null(l.timers);
	/* What is set and cancelled from here on knows nothing of those before. */
	loop_timer_set(&l, &k[1].t, 1000000000ull);
	assert_true(l.timers == &k[1].t && !k[1].t.child && !k[1].t.next);
	loop_timer_cancel(&k[1].t);
	loop_free(&l);
}

static void test_removed_source_stays_silent(void **state)
{
	struct pair p[2] = {0};
	struct loop l;
	int sv[2][2];

	(void)state;
	assert_int_equal(loop_init(&l), 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv[i]), 0);
		p[i].other = &p[!i];
		p[i].src.fn = on_pair;
		p[i].src.arg = &p[i];
		assert_int_equal(loop_add(&l, &p[i].src, sv[i][0], EPOLLIN), 0);
		assert_int_equal(write(sv[i][1], "x", 1), 1);
	}
	assert_int_equal(loop_run_once(&l, 1000), 0);
	assert_int_equal(loop_run_once(&l, 0), 0);
	assert_int_equal(p[0].calls + p[1].calls, 1);
	for (int i = 0; i < 2; i++) {
		close(sv[i][0]);
		close(sv[i][1]);
	}
	loop_free(&l);
}

static void *quitter(void *arg)
{
	usleep(20000);
	loop_quit(arg);
	return NULL;
}

static void test_quit_from_another_thread(void **state)
{
	struct loop l;
	pthread_t t;

	(void)state;
	assert_int_equal(loop_init(&l), 0);
	assert_int_equal(pthread_create(&t, NULL, quitter, &l), 0);
	assert_int_equal(loop_run(&l), 0);
	pthread_join(t, NULL);
	loop_free(&l);
}

static void test_buf_bound_and_order(void **state)
{
	uint8_t in[1000], out[1000];
	size_t put = 0, got = 0;
	struct buf b;

	(void)state;
	for (size_t i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i ^ i >> 3);
	buf_init(&b, 100);
	assert_int_equal(buf_append(&b, in, 101), -ENOBUFS);
	/* Odd steps, so that content wraps around the allocation many times. */
	while (got < sizeof(in)) {
		size_t n = sizeof(in) - put < 37 ? sizeof(in) - put : 37;

		if (buf_room(&b) >= n && n) {
			assert_int_equal(buf_append(&b, in + put, n), 0);
			put += n;
		}
		n = buf_len(&b) < 23 ? buf_len(&b) : 23;
		memcpy(out + got, buf_data(&b), n);
		buf_consume(&b, n);
		got += n;
		assert_true(b.cap <= 512);
	}
	assert_memory_equal(in, out, sizeof(in));
	assert_int_equal(buf_len(&b), 0);
	buf_free(&b);
}

static void test_read_file_limits(void **state)
{
	_cleanup_free char *text = NULL;
	size_t len = 0;
	char *none = NULL;

	(void)state;
	assert_int_equal(io_read_file("/proc/self/status", 1 << 20, &text, &len), 0);
	assert_true(len > 100);
	assert_int_equal(strlen(text), len);
	assert_int_equal(io_read_file("/proc/self/status", 10, &none, NULL), -EFBIG);
	assert_int_equal(io_read_file("/nonexistent", 10, &none, NULL), -ENOENT);
	assert_null(none);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_timers_in_order),
		cmocka_unit_test(test_timer_set_again),
		cmocka_unit_test(test_timer_that_sets_itself),
		cmocka_unit_test(test_many_timers),
		cmocka_unit_test(test_a_fork_has_no_timers),
		cmocka_unit_test(test_removed_source_stays_silent),
		cmocka_unit_test(test_quit_from_another_thread),
		cmocka_unit_test(test_buf_bound_and_order),
		cmocka_unit_test(test_read_file_limits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
