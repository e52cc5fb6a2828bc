/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that the guest opens, under pressure: how many there can be, how
 * many questions, and what a guest or an owner may do wrong.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_guest.h"
#include "lib/io.h"
#include "proto/guest.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Answers to what nobody asked, or asked once: their sockets are closed, nothing else. */
static void test_answers_to_nothing(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(1034), d = fake_guest_end(1035);
	uint32_t id = fake_guest_asks(f, &c), untold;
	int fd, other;

	fake_guest_sends(f, &d, VSOCK_OP_REQUEST);
	untold = f->v.conn[VSOCK_CONNS + 1035 % VSOCK_GUEST_CONNS].cookie;
	const uint32_t wrong[] = {0, 1, 63, 64, id ^ 1, id + 64, id - 64, ~id, untold};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		other = fake_answer(f, wrong[i], -ENOENT);
		fake_assert_eof(other);
		close(other);
		vsock_reject(&f->v, wrong[i]);
		fake_assert_no_packet(f);
	}
	assert_int_equal(vsock_streams(&f->v), 2);
	fd = fake_answer(f, id, 0);
	other = fake_answer(f, id, -ENOENT); /* once is enough */
	fake_assert_eof(other);
	close(other);
	vsock_reject(&f->v, id);
	struct vsock_hdr h;

	fake_expect(f, &h, VSOCK_OP_RESPONSE);
	fake_talk(f, &c, fd);
	assert_int_equal(vsock_next_asked(&f->v), untold);
	close(fd);
}

/* Any socket that cannot be watched: the guest is refused. */
static void test_accept_without_a_socket(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(1024);
	int fd = memfd_create("no socket", MFD_CLOEXEC);

	assert_int_equal(vsock_accept(&f->v, fake_guest_asks(f, &c), fd), -EPERM);
	fake_expect_rst(f, &c);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_int_equal(vsock_streams(&f->v), 0);
}

/* As many as there may be, on ports that all want the same slot; each is found, none is mixed up.
 */
static void test_limit(void **state)
{
	enum { N = VSOCK_GUEST_CONNS };
	struct fake *f = *state;
	struct fake_conn c[N], more = fake_guest_end(77);
	uint32_t id[N];
	int fd[N];

	for (unsigned i = 0; i < N; i++) {
		c[i] = fake_guest_end(5 + 64 * i);
		id[i] = fake_guest_asks(f, &c[i]);
		for (unsigned k = 0; k < i; k++)
			assert_int_not_equal(id[k], id[i]);
		fd[i] = fake_answer(f, id[i], 0);
		struct vsock_hdr h;

		fake_expect(f, &h, VSOCK_OP_RESPONSE);
	}
	assert_int_equal(vsock_streams(&f->v), N);
	fake_guest_sends(f, &more, VSOCK_OP_REQUEST);
	fake_expect_rst(f, &more);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	assert_int_equal(f->v.bad_packets, 0);
	for (unsigned i = 0; i < N; i++)
		fake_talk(f, &c[i], fd[i]);
	/* The host has its own, all of them. */
	for (unsigned i = 0; i < VSOCK_CONNS; i++)
		close(fake_connect_start(f, 1, i));
	assert_int_equal(vsock_streams(&f->v), VSOCK_SLOTS);
	for (int i = 0; i < 20; i++) {
		struct vsock_hdr h;

		fake_turn(f);
		while (fake_rx(f, &h, NULL, true))
			assert_true(h.src_port >= VSOCK_PORT_FIRST);
	}
	for (unsigned i = N; i-- > 0;)
		fake_talk(f, &c[i], fd[i]);
	/* Gaps in the row hide nobody behind them. */
	for (unsigned i = 0; i < N; i += 2) {
		fake_guest_sends(f, &c[i], VSOCK_OP_RST);
		fake_assert_eof(fd[i]);
		close(fd[i]);
	}
	for (unsigned i = 1; i < N; i += 2)
		fake_talk(f, &c[i], fd[i]);
	for (unsigned i = 0; i < N; i += 2)
		fd[i] = fake_guest_opens(f, &c[i]);
	for (unsigned i = 0; i < N; i++)
		fake_talk(f, &c[i], fd[i]);
	for (unsigned i = 0; i < N; i++)
		close(fd[i]);
}

/* A stream whose host has left and whose guest does not say so makes room for another. */
static void test_left_by_the_host(void **state)
{
	enum { N = VSOCK_GUEST_CONNS };
	struct fake *f = *state;
	struct fake_conn c[N], more = fake_guest_end(77);
	struct vsock_hdr h;
	int fd[N];

	for (unsigned i = 0; i < N; i++) {
		c[i] = fake_guest_end(1000 + i);
		fd[i] = fake_guest_opens(f, &c[i]);
	}
	close(fd[20]);
	fake_turns(f);
	while (fake_rx(f, &h, NULL, true))
		assert_int_equal(h.dst_port, c[20].guest_port);
	assert_int_equal(vsock_streams(&f->v), N);
	fake_guest_sends(f, &more, VSOCK_OP_REQUEST);
	fake_expect_rst(f, &c[20]);
	fd[20] = fake_answer(f, vsock_next_asked(&f->v), 0);
	fake_expect(f, &h, VSOCK_OP_RESPONSE);
	fake_talk(f, &more, fd[20]);
	for (unsigned i = 0; i < N; i++)
		close(fd[i]);
}

/* So many questions at a time, in whatever order they are answered. */
static void test_questions_at_a_time(void **state)
{
	enum { N = VSOCK_GUEST_CONNS };
	struct fake *f = *state;
	struct fake_conn c[N];
	uint32_t id[VSOCK_ASKING], next;
	unsigned handed = 0, asks;
	struct vsock_hdr h;

	for (unsigned i = 0; i < N; i++) {
		c[i] = fake_guest_end(2000 + i);
		fake_guest_sends(f, &c[i], VSOCK_OP_REQUEST);
	}
	for (; handed < VSOCK_ASKING; handed++)
		assert_int_not_equal(id[handed] = vsock_next_asked(&f->v), 0);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	for (unsigned i = 0; handed < N; i++) {
		asks = f->asks;
		if (i % 3)
			vsock_reject(&f->v, id[i * 7 % VSOCK_ASKING]);
		else
			close(fake_answer(f, id[i * 7 % VSOCK_ASKING], 0));
		assert_int_equal(f->asks, asks + 1); /* the owner hears that there is room again */
		next = vsock_next_asked(&f->v);
		assert_int_not_equal(next, 0);
		assert_int_equal(vsock_next_asked(&f->v), 0);
		id[i * 7 % VSOCK_ASKING] = next;
		handed++;
	}
	asks = f->asks;
	for (unsigned i = 0; i < VSOCK_ASKING; i++)
		vsock_reject(&f->v, id[i]);
	assert_int_equal(f->asks, asks);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	fake_turns(f);
	while (fake_rx(f, &h, NULL, true))
		;
}

/* A guest that asks and gives up, as fast as it can: the owner gets no more than it answers. */
static void test_flood_of_questions(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(0);
	uint32_t id[VSOCK_ASKING], taken;
	unsigned handed = 0;
	struct vsock_hdr h;

	for (uint32_t i = 0; i < 5000; i++) {
		c.guest_port = i;
		fake_guest_sends(f, &c, VSOCK_OP_REQUEST);
		taken = vsock_next_asked(&f->v);
		if (taken) {
			assert_true(handed < VSOCK_ASKING);
			id[handed++] = taken;
		}
		if (i % 3 == 0) { /* three ways to give up */
			fake_guest_sends(f, &c, VSOCK_OP_RST);
		} else if (i % 3 == 1) {
			fake_guest_sends(f, &c, VSOCK_OP_REQUEST);
			fake_expect(f, &h, VSOCK_OP_RST);
		} else {
			f->layout = (f->layout + 1) % 3;
			fake_start(f);
		}
		fake_assert_no_packet(f);
		assert_true(vsock_streams(&f->v) <= VSOCK_ASKING);
	}
	assert_int_equal(handed, VSOCK_ASKING);
	assert_int_equal(vsock_streams(&f->v), VSOCK_ASKING);
	/* Late answers are of no consequence, and make room. */
	for (unsigned i = 0; i < VSOCK_ASKING; i++) {
		int fd = -1;

		if (i % 2)
			vsock_reject(&f->v, id[i]);
		else
			fake_assert_eof(fd = fake_answer(f, id[i], -ENOENT));
		if (fd >= 0)
			close(fd);
	}
	fake_assert_no_packet(f);
	assert_int_equal(vsock_streams(&f->v), 0);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	c.guest_port = 9;
	fake_talk(f, &c, fake_guest_opens(f, &c));
	assert_true(virtio_dev_active(f->dev));
}

/* A question that the guest has given up is not in its way: neither to ask again, nor at the end.
 */
static void test_asks_again(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(1024);
	uint32_t old = fake_guest_asks(f, &c), id;
	struct vsock_hdr h;
	int fd;

	fake_guest_sends(f, &c, VSOCK_OP_RST);
	fake_guest_sends(f, &c, VSOCK_OP_RW); /* nobody's */
	fake_expect_rst(f, &c);
	id = fake_guest_asks(f, &c);
	assert_int_not_equal(id, old);
	fd = fake_answer(f, id, 0);
	fake_expect(f, &h, VSOCK_OP_RESPONSE);
	fake_talk(f, &c, fd);
	vsock_set_egress(&f->v, false);
	fake_expect_rst(f, &c); /* of the stream; the other has had its own */
	fake_assert_no_packet(f);
	assert_int_equal(vsock_streams(&f->v), 0);
	close(fd);
}

/* Packets that a guest may not send yet, or not any more: the connection ends. */
static void test_wrong_state(void **state)
{
	static const enum vsock_op ops[] = {VSOCK_OP_REQUEST,       VSOCK_OP_RESPONSE,
					    VSOCK_OP_SHUTDOWN,      VSOCK_OP_RW,
					    VSOCK_OP_CREDIT_UPDATE, VSOCK_OP_CREDIT_REQUEST};
	enum { UNTOLD, TOLD, ACCEPTED, OPEN, STATES };
	struct fake *f = *state;
	struct vsock_hdr h;

	for (unsigned at = UNTOLD; at < STATES; at++)
		for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
			struct fake_conn c = fake_guest_end(1024 + i);
			uint64_t bad = f->v.bad_packets;
			bool right = at == OPEN && ops[i] != VSOCK_OP_REQUEST &&
				     ops[i] != VSOCK_OP_RESPONSE;
			uint32_t id = 0;
			int fd = -1;

			if (right)
				continue;
			if (at == ACCEPTED) { /* no receive buffer: the RESPONSE cannot go out */
				fake_negotiate(f);
				for (unsigned q = 0; q < VSOCK_QUEUES; q++)
					fake_setup_queue(f, q, FAKE_QUEUE);
				fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
			} else {
				fake_start(f);
			}
			fake_guest_sends(f, &c, VSOCK_OP_REQUEST);
			if (at != UNTOLD)
				id = vsock_next_asked(&f->v);
			if (at >= ACCEPTED)
				fd = fake_answer(f, id, 0);
			if (at == OPEN)
				fake_expect(f, &h, VSOCK_OP_RESPONSE);
			assert_true(fake_tx(f, &c, ops[i], 3, ops[i] == VSOCK_OP_RW ? "x" : NULL,
					    ops[i] == VSOCK_OP_RW));
			if (at == ACCEPTED) {
				fake_post_rx(f, 0);
				fake_kick(f, VSOCK_QUEUE_RX);
			}
			fake_expect_rst(f, &c);
			fake_assert_no_packet(f);
			assert_int_equal(f->v.bad_packets, bad + 1);
			if (fd >= 0)
				fake_assert_eof(fd);
			close(fd);
			vsock_reject(&f->v, id);
			assert_int_equal(vsock_next_asked(&f->v), 0);
			assert_int_equal(vsock_streams(&f->v), 0);
		}
}

/* Without receive buffers there is room for so many RSTs and connections together, and no more. */
static void test_places_for_rsts(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(0);
	uint32_t next = 0, got = 0, ids = 0;
	struct vsock_hdr h;

	fake_negotiate(f);
	for (unsigned q = 0; q < VSOCK_QUEUES; q++)
		fake_setup_queue(f, q, FAKE_QUEUE);
	fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
	do
		c.guest_port = next++;
	while (fake_tx(f, &c, VSOCK_OP_REQUEST, 0, NULL, 0));
	assert_int_equal(vsock_streams(&f->v), VSOCK_GUEST_CONNS);
	assert_int_equal(f->v.rst_len + vsock_streams(&f->v), VSOCK_RSTS);
	while (vsock_next_asked(&f->v))
		ids++;
	assert_int_equal(ids, VSOCK_ASKING);
	vsock_set_egress(&f->v, false);
	assert_int_equal(vsock_streams(&f->v), 0);
	assert_int_equal(f->v.rst_len, VSOCK_RSTS);
	fake_assert_quiet(f);
	for (unsigned i = 0; i < fake_rx_slots(f); i++)
		fake_post_rx(f, i);
	fake_kick(f, VSOCK_QUEUE_RX);
	for (int i = 0; i < 100; i++) {
		fake_turn(f);
		while (fake_rx(f, &h, NULL, true)) {
			assert_int_equal(h.op, VSOCK_OP_RST);
			got++;
		}
	}
	assert_int_equal(got, next - 1); /* one for each that was sent */
}

/* Ids stay other than 0 and other than each other when their count wraps. */
static void test_ids_wrap(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(64), d = fake_guest_end(128);
	uint32_t id;

	f->v.questions = (1u << 26) - 1;
	id = fake_guest_asks(f, &c);
	assert_int_equal(id, VSOCK_GUEST_CONNS); /* slot 0, turn 1 */
	assert_int_not_equal(fake_guest_asks(f, &d), id);
	vsock_reject(&f->v, id);
	fake_expect_rst(f, &c);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fake_setup_on, fake_teardown)
	const struct CMUnitTest tests[] = {
		T(test_answers_to_nothing),
		T(test_accept_without_a_socket),
		T(test_limit),
		T(test_left_by_the_host),
		T(test_questions_at_a_time),
		T(test_flood_of_questions),
		T(test_asks_again),
		T(test_wrong_state),
		T(test_places_for_rsts),
		T(test_ids_wrap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
