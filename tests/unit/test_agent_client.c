/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams to an agent that floods: how much of one is taken before others have
 * their turn, that nothing is lost by it, and frames that no agent sends. What is
 * judged is order and counts. The other end of a stream is the test's.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "daemon/agent_client.h"
#include "daemon/limits.h"
#include "daemon/vmm_client.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Where the VMM would take its end of a stream. */
static int theirs = -1;

int64_t vmm_connect(struct vmm *v, uint32_t port, int fd)
{
	(void)v;
	(void)port;
	theirs = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return 1;
}

struct rig {
	struct loop loop;
	struct agent agent;
	struct agent_stream *s;
	int peer;
	int taken;      /* frames, of the stream */
	int most;       /* of them in one call of its owner */
	int last;       /* what agent_next() said last */
	int refill;     /* frames that are still written, one for each that is taken */
	int other_at;   /* how many were taken when the other source had its turn; -1: not yet */
	int timer_at;   /* the same of a timer */
	uint32_t order; /* of the next frame */
};

static void put(int fd, uint8_t type, const void *payload, uint32_t len)
{
	uint8_t head[FRAME_HEADER_SIZE];

	frame_pack_header(head, type, len);
	assert_int_equal(write(fd, head, sizeof(head)), sizeof(head));
	if (len)
		assert_int_equal(write(fd, payload, len), len);
}

/* Numbered frames, as many as the socket takes: their number. */
static uint32_t fill(struct rig *r, uint32_t from)
{
	struct {
		uint8_t head[FRAME_HEADER_SIZE];
		uint32_t n;
	} f[512];

	assert_int_equal(sizeof(f[0]), 12);
	for (;;) {
		ssize_t n;

		for (uint32_t i = 0; i < ARRAY_SIZE(f); i++) {
			frame_pack_header(f[i].head, FRAME_STDOUT, sizeof(f[i].n));
			f[i].n = from + i;
		}
		n = send(r->peer, f, sizeof(f), MSG_DONTWAIT);
		if (n < 0)
			return from;
		assert_int_equal(n, sizeof(f));
		from += (uint32_t)ARRAY_SIZE(f);
	}
}

static void on_stream(struct agent_stream *s)
{
	struct rig *r = s->user;
	struct frame f;
	int before = r->taken;

	while ((r->last = agent_next(s, &f)) == 1) {
		assert_int_equal(f.type, FRAME_STDOUT);
		assert_memory_equal(f.payload, &r->order, sizeof(r->order));
		r->order++;
		r->taken++;
		if (r->refill) {
			uint32_t n = (uint32_t)(r->order + 9);

			r->refill--;
			put(r->peer, FRAME_STDOUT, &n, sizeof(n));
		}
	}
	if (r->taken - before > r->most)
		r->most = r->taken - before;
}

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct err err;

	assert_non_null(r);
	assert_int_equal(loop_init(&r->loop), 0);
	agent_init(&r->agent, &r->loop, NULL);
	r->s = agent_open(&r->agent, on_stream, r, &err);
	assert_non_null(r->s);
	r->peer = theirs;
	r->other_at = r->timer_at = -1;
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	agent_free(&r->agent);
	close(r->peer);
	loop_free(&r->loop);
	free(r);
	return 0;
}

static void on_other(struct loop_src *src, uint32_t events)
{
	struct rig *r = src->arg;

	(void)events;
	if (r->other_at < 0)
		r->other_at = r->taken;
}

/* One stream after the other, and each gets on. */
static void test_others_have_their_turn(void **state)
{
	struct rig *r = *state;
	struct loop_src other = {.fd = -1, .fn = on_other, .arg = r};
	uint32_t n = fill(r, 0);
	int sv[2];

	assert_true(n > 4 * AGENT_TURN_FRAMES);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(loop_add(&r->loop, &other, sv[0], EPOLLIN), 0);
	assert_int_equal(write(sv[1], "x", 1), 1);
	assert_int_equal(loop_run_once(&r->loop, 0), 0);
	assert_in_range(r->taken, 1, 2 * AGENT_TURN_FRAMES);
	assert_in_range(r->other_at, 0, AGENT_TURN_FRAMES);
	/* The rest comes by itself, in order, and nothing of it is lost. */
	for (uint32_t i = 0; i < n && r->order < n; i++)
		assert_int_equal(loop_run_once(&r->loop, 0), 0);
	assert_int_equal(r->order, n);
	assert_in_range(r->most, 1, AGENT_TURN_FRAMES);
	assert_int_equal(r->last, 0);
	loop_del(&other);
	close(sv[0]);
	close(sv[1]);
}

static void on_timer(struct loop_timer *t)
{
	struct rig *r = t->arg;

	r->timer_at = r->taken;
}

/* Who writes as fast as he is read does not keep a deadline from coming. */
static void test_a_producer_that_keeps_pace(void **state)
{
	struct rig *r = *state;
	struct loop_timer t = {.fn = on_timer, .arg = r};

	r->refill = 100000;
	for (uint32_t i = 0; i < 10; i++)
		put(r->peer, FRAME_STDOUT, &i, sizeof(i));
	loop_timer_set(&r->loop, &t, 0);
	assert_int_equal(loop_run_once(&r->loop, 0), 0);
	assert_in_range(r->timer_at, 1, AGENT_TURN_FRAMES);
	assert_true(r->refill > 0);
}

/* Large frames count by their bytes. */
static void test_bytes_of_a_turn(void **state)
{
	static const uint8_t big[FRAME_PAYLOAD_MAX];
	struct rig *r = *state;
	struct frame f;
	size_t bytes = 0;

	loop_del(&r->s->src); /* the test is the owner */
	while (agent_room(r->s) && bytes < 4 * AGENT_TURN_BYTES) {
		uint8_t head[FRAME_HEADER_SIZE];

		frame_pack_header(head, FRAME_STDOUT, sizeof(big));
		if (send(r->peer, head, sizeof(head), MSG_DONTWAIT) != sizeof(head) ||
		    send(r->peer, big, sizeof(big), MSG_DONTWAIT) != sizeof(big))
			break;
		if (agent_next(r->s, &f) != 1)
			break;
		bytes += f.len;
	}
	assert_in_range(bytes, sizeof(big), AGENT_TURN_BYTES + sizeof(big));
	assert_int_equal(agent_next(r->s, &f), 0);
}

/* A sandbox that ends: what it had written is taken, and no more than that. */
static void test_the_last_turn(void **state)
{
	struct rig *r = *state;

	r->refill = 1000000;
	for (uint32_t i = 0; i < 10; i++)
		put(r->peer, FRAME_STDOUT, &i, sizeof(i));
	assert_int_equal(loop_run_once(&r->loop, 0), 0);
	r->taken = 0;
	agent_last_turn(&r->agent);
	r->refill = 0;
	on_stream(r->s);
	assert_int_equal(r->taken, 10); /* all that was there, whatever its turn had left */
	for (uint32_t i = r->order; i < r->order + 10; i++)
		put(r->peer, FRAME_STDOUT, &i, sizeof(i));
	r->refill = 1000000;
	r->most = 0;
	on_stream(r->s);
	assert_true(r->refill > 0);
	assert_int_equal(r->last, 0);
}

/* Streams of one sandbox, each with a rig of its own. */
#define MANY 20

struct many {
	struct rig *first;
	struct rig r[MANY];
	uint32_t there[MANY]; /* frames that were written */
};

static struct many *open_many(struct rig *first)
{
	struct many *m = calloc(1, sizeof(*m));
	struct err err;

	assert_non_null(m);
	m->first = first;
	for (int i = 0; i < MANY; i++) {
		m->r[i].s = agent_open(&first->agent, on_stream, &m->r[i], &err);
		assert_non_null(m->r[i].s);
		m->r[i].peer = theirs;
		m->there[i] = fill(&m->r[i], 0);
	}
	return m;
}

static void close_many(struct many *m)
{
	for (int i = 0; i < MANY; i++) {
		agent_close(m->r[i].s);
		close(m->r[i].peer);
	}
	free(m);
}

/* Frames that were taken of all of them. */
static int taken_of(const struct many *m)
{
	int n = 0;

	for (int i = 0; i < MANY; i++)
		n += m->r[i].taken;
	return n;
}

/* However many streams a guest floods: they have one turn among them, and each gets on. */
static void test_streams_share_a_turn(void **state)
{
	struct many *m = open_many(*state);
	struct loop *loop = &m->first->loop;
	uint32_t rounds = 0, all = 0;

	for (int i = 0; i < MANY; i++)
		all += m->there[i];
	for (int before = 0; before < (int)all; before = taken_of(m)) {
		assert_int_equal(loop_run_once(loop, 0), 0);
		assert_in_range(taken_of(m) - before, 1, AGENT_TURN_FRAMES);
		/* After so many turns everybody has had one, the first of them two. */
		if (++rounds == MANY + 1)
			for (int i = 0; i < MANY; i++)
				assert_true(m->r[i].taken > 0);
	}
	for (int i = 0; i < MANY; i++)
		assert_int_equal(m->r[i].order, m->there[i]);
	close_many(m);
}

/* Who asks for frames by himself does not get ahead of those that wait. */
static void test_nobody_overtakes(void **state)
{
	struct many *m = open_many(*state);
	struct frame f;

	assert_int_equal(loop_run_once(&m->first->loop, 0), 0);
	assert_int_equal(taken_of(m), AGENT_TURN_FRAMES);
	m->first->loop.rounds++; /* there is a turn again, but others wait for it */
	put(m->first->peer, FRAME_STDOUT, "abcd", 4);
	assert_int_equal(agent_next(m->first->s, &f), 0);
	close_many(m);
}

/* What takes long is worth many bytes. */
static void test_spent(void **state)
{
	struct rig *r = *state;
	struct frame f;

	for (int i = 0; i < 3; i++)
		put(r->peer, FRAME_STDOUT, "abcd", 4);
	assert_int_equal(agent_next(r->s, &f), 1);
	agent_spend(r->s, AGENT_TURN_BYTES / 2);
	assert_int_equal(agent_next(r->s, &f), 1);
	agent_spend(r->s, AGENT_TURN_BYTES / 2);
	assert_int_equal(agent_next(r->s, &f), 0);
}

/* A sandbox that ends with many full streams: no more of one than it may hold, nor of all. */
static void test_the_last_turn_of_many(void **state)
{
	const size_t big = FRAME_PAYLOAD_MAX;
	struct many *m = open_many(*state);
	struct agent *a = &m->first->agent;
	size_t all = 0;

	agent_last_turn(a);
	for (int i = 0; i < MANY; i++) {
		struct agent_stream *s = m->r[i].s;
		size_t bytes = 0;
		struct frame f;

		/* As if its frames were large: who writes on is not listened to for ever. */
		for (int n = 0; n < 100 && agent_next(s, &f) == 1; n++) {
			bytes += f.len;
			agent_spend(s, big);
			bytes += big;
		}
		assert_true(bytes <= AGENT_LAST_OF_ONE + 2 * big);
		all += bytes;
	}
	assert_in_range(all, AGENT_LAST_BYTES / 2, AGENT_LAST_BYTES + 2 * big);
	assert_int_equal(loop_run_once(&m->first->loop, 0), 0);
	close_many(m);
}

/* The stream of a conversation that was over in its turn's last frame is looked at all the same. */
static void test_release_at_the_end_of_a_turn(void **state)
{
	struct rig *r = *state;
	struct agent_stream *s = r->s;
	struct frame f;

	for (uint32_t i = 0; i <= AGENT_TURN_FRAMES; i++)
		put(r->peer, FRAME_STDOUT, &i, sizeof(i));
	for (int i = 0; i < AGENT_TURN_FRAMES; i++)
		assert_int_equal(agent_next(s, &f), 1);
	assert_int_equal(agent_next(s, &f), 0);
	agent_release(s);
	assert_int_equal(r->agent.nidle, 0); /* there is a frame behind the last */
	assert_int_equal(r->agent.nstreams, 0);
	assert_int_equal(loop_run_once(&r->loop, 0), 0);
}

static void test_kept_at_the_end_of_a_turn(void **state)
{
	struct rig *r = *state;
	struct frame f;
	struct err err;

	for (uint32_t i = 0; i < AGENT_TURN_FRAMES; i++)
		put(r->peer, FRAME_STDOUT, &i, sizeof(i));
	for (int i = 0; i < AGENT_TURN_FRAMES; i++)
		assert_int_equal(agent_next(r->s, &f), 1);
	agent_release(r->s);
	assert_int_equal(r->agent.nidle, 1);
	/* The next conversation has its turn with the next round. */
	assert_ptr_equal(agent_open(&r->agent, on_stream, r, &err), r->s);
	put(r->peer, FRAME_STDOUT, "abcd", 4);
	assert_int_equal(agent_next(r->s, &f), 0);
	r->order = 0x64636261;
	assert_int_equal(loop_run_once(&r->loop, 0), 0);
	assert_int_equal(r->taken, 1);
	agent_close(r->s);
}

/* Each would be a frame for which nobody waits, and of which no bytes count. */
static void test_frames_without_a_byte(void **state)
{
	static const uint8_t types[] = {FRAME_STDOUT, FRAME_STDERR, FRAME_DATA_OUT};
	struct rig *r = *state;
	struct frame f;
	struct err err;

	put(r->peer, FRAME_EVENT_PART, NULL, 0);
	put(r->peer, FRAME_END_OUT, NULL, 0);
	assert_int_equal(agent_next(r->s, &f), 1);
	assert_int_equal(f.type, FRAME_EVENT_PART);
	assert_int_equal(agent_next(r->s, &f), 1);
	assert_int_equal(f.type, FRAME_END_OUT);
	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		put(r->peer, types[i], NULL, 0);
		assert_int_equal(agent_next(r->s, &f), -EPROTO);
		assert_int_equal(agent_next(r->s, &f), -EPROTO);
		agent_close(r->s);
		close(r->peer);
		r->s = agent_open(&r->agent, on_stream, r, &err);
		assert_non_null(r->s);
		r->peer = theirs;
	}
}

/* As many as were asked for. */
static void test_pong(void **state)
{
	struct rig *r = *state;
	struct frame f;

	agent_send(r->s, FRAME_PING, "podflare", 8);
	agent_send(r->s, FRAME_PING, "podflare", 8);
	for (int i = 0; i < 3; i++)
		put(r->peer, FRAME_PONG, "podflare", 8);
	assert_int_equal(agent_next(r->s, &f), 1);
	assert_int_equal(f.type, FRAME_PONG);
	assert_int_equal(agent_next(r->s, &f), 1);
	assert_int_equal(agent_next(r->s, &f), -EPROTO);
}

/* Its answer would meet the next conversation, which has asked for none. */
static void test_release_before_a_pong(void **state)
{
	struct rig *r = *state;
	struct frame f;

	agent_send(r->s, FRAME_PING, "podflare", 8);
	put(r->peer, FRAME_EXIT, "{}", 2);
	assert_int_equal(agent_next(r->s, &f), 1);
	agent_release(r->s);
	assert_int_equal(r->agent.nidle, 0);
	assert_int_equal(r->agent.nstreams, 0);
	assert_int_equal(loop_run_once(&r->loop, 0), 0);
}

/* An answer and the stream's end behind it: nothing can follow on it, so it is not kept. */
static void test_release_at_the_end_of_a_stream(void **state)
{
	struct rig *r = *state;
	struct frame f;

	put(r->peer, FRAME_EXIT, "{}", 2);
	assert_int_equal(shutdown(r->peer, SHUT_WR), 0);
	assert_int_equal(agent_next(r->s, &f), 1);
	agent_release(r->s);
	assert_int_equal(r->agent.nidle, 0);
	assert_int_equal(r->agent.nstreams, 0);
	/* Beyond the moment in which the end is told: there is nobody any more to tell it to. */
	for (uint64_t until = io_now_ns() + 2 * AGENT_EOF_NS; io_now_ns() < until;)
		assert_int_equal(loop_run_once(&r->loop, 10), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_others_have_their_turn, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_producer_that_keeps_pace, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bytes_of_a_turn, setup, teardown),
		cmocka_unit_test_setup_teardown(test_the_last_turn, setup, teardown),
		cmocka_unit_test_setup_teardown(test_streams_share_a_turn, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nobody_overtakes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_spent, setup, teardown),
		cmocka_unit_test_setup_teardown(test_the_last_turn_of_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_release_at_the_end_of_a_turn, setup, teardown),
		cmocka_unit_test_setup_teardown(test_kept_at_the_end_of_a_turn, setup, teardown),
		cmocka_unit_test_setup_teardown(test_frames_without_a_byte, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pong, setup, teardown),
		cmocka_unit_test_setup_teardown(test_release_before_a_pong, setup, teardown),
		cmocka_unit_test_setup_teardown(test_release_at_the_end_of_a_stream, setup,
						teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
