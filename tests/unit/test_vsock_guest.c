/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that the guest opens: the switch, questions and answers, streams,
 * limits, and what a guest may do wrong. Saved and forked: test_vsock_state.c.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_driver.h"
#include "lib/io.h"
#include "proto/guest.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static struct fake_conn guest_end(uint32_t port)
{
	return (struct fake_conn){
		.guest_port = port,
		.host_port = GUEST_EGRESS_PORT,
		.buf_alloc = 256u << 10,
	};
}

static void guest_sends(struct fake *f, const struct fake_conn *c, enum vsock_op op)
{
	assert_true(fake_tx(f, c, op, 0, NULL, 0));
}

/* The guest asks: the question's id, taken. */
static uint32_t ask(struct fake *f, const struct fake_conn *c)
{
	unsigned asks = f->asks;
	uint32_t id;

	guest_sends(f, c, VSOCK_OP_REQUEST);
	assert_true(f->asks > asks);
	fake_assert_no_packet(f);
	id = vsock_next_asked(&f->v);
	assert_int_not_equal(id, 0);
	return id;
}

/* A socketpair whose one end is the answer: the host's end. */
static int answer(struct fake *f, uint32_t id, int expected)
{
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(io_set_nonblock(sv[0], 1), 0);
	assert_int_equal(vsock_accept(&f->v, id, sv[1]), expected);
	return sv[0];
}

static void expect_rst(struct fake *f, const struct fake_conn *c)
{
	struct vsock_hdr h;

	fake_expect(f, &h, VSOCK_OP_RST);
	assert_int_equal(h.src_cid, VSOCK_CID_HOST);
	assert_int_equal(h.src_port, c->host_port);
	assert_int_equal(h.dst_port, c->guest_port);
}

/* A stream, open on both sides: the host's end. */
static int open_stream(struct fake *f, struct fake_conn *c)
{
	int fd = answer(f, ask(f, c), 0);
	struct vsock_hdr h;

	fake_expect(f, &h, VSOCK_OP_RESPONSE);
	assert_int_equal(h.src_cid, VSOCK_CID_HOST);
	assert_int_equal(h.src_port, GUEST_EGRESS_PORT);
	assert_int_equal(h.dst_port, c->guest_port);
	assert_int_equal(h.len, 0);
	assert_int_equal(h.flags, 0);
	assert_int_equal(h.buf_alloc, VSOCK_BUF_ALLOC);
	assert_int_equal(h.fwd_cnt, 0);
	c->peer_alloc = h.buf_alloc;
	c->peer_fwd = h.fwd_cnt;
	return fd;
}

/* A word each way: it is this connection's. */
static void talk(struct fake *f, const struct fake_conn *c, int fd)
{
	uint8_t data[FAKE_RX_BUF];
	struct vsock_hdr h;

	assert_true(fake_tx(f, c, VSOCK_OP_RW, 0, &c->guest_port, 4));
	assert_int_equal(io_read_some(fd, data, sizeof(data)), 4);
	assert_memory_equal(data, &c->guest_port, 4);
	assert_int_equal(io_write_some(fd, &c->guest_port, 4), 4);
	fake_turns(f);
	assert_true(fake_rx(f, &h, data, true));
	assert_int_equal(h.op, VSOCK_OP_RW);
	assert_int_equal(h.src_port, GUEST_EGRESS_PORT);
	assert_int_equal(h.dst_port, c->guest_port);
	assert_int_equal(h.len, 4);
	assert_memory_equal(data, &c->guest_port, 4);
}

static int setup_on(void **state)
{
	struct fake *f;

	fake_setup(state);
	f = *state;
	vsock_set_egress(&f->v, true);
	fake_start(f);
	return 0;
}

static void test_off_at_first(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = guest_end(1024);
	int fd;

	fake_start(f);
	guest_sends(f, &c, VSOCK_OP_REQUEST);
	expect_rst(f, &c);
	assert_int_equal(f->asks, 0);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	assert_int_equal(vsock_streams(&f->v), 0);
	assert_int_equal(f->v.bad_packets, 0);
	vsock_set_egress(&f->v, true);
	fd = open_stream(f, &c);
	talk(f, &c, fd);
	vsock_set_egress(&f->v, false);
	expect_rst(f, &c);
	guest_sends(f, &c, VSOCK_OP_REQUEST);
	expect_rst(f, &c);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	close(fd);
}

/* On means one port of one CID, by streams; nothing else is asked about. */
static void test_only_that_port(void **state)
{
	static const uint64_t cids[] = {2, 0, 1, 3, 4, 0xffffffff, 0x100000002};
	static const uint32_t ports[] = {GUEST_EGRESS_PORT,
					 0,
					 GUEST_EGRESS_PORT - 1,
					 GUEST_EGRESS_PORT + 1,
					 22,
					 GUEST_AGENT_PORT,
					 1u << 30,
					 0xffffffff,
					 GUEST_EGRESS_PORT | 1u << 30};
	struct fake *f = *state;
	unsigned tried = 0;

	for (size_t i = 0; i < ARRAY_SIZE(cids); i++)
		for (size_t k = 0; k < ARRAY_SIZE(ports); k++)
			for (uint16_t type = 0; type < 4; type++) {
				const struct vsock_hdr req = {
					.src_cid = 3,
					.dst_cid = cids[i],
					.src_port = 1024,
					.dst_port = ports[k],
					.type = type,
					.op = VSOCK_OP_REQUEST,
				};
				struct vsock_hdr h;

				if (!i && !k && type == VSOCK_TYPE_STREAM)
					continue;
				assert_true(fake_tx_hdr(f, &req, NULL, 1));
				fake_expect(f, &h, VSOCK_OP_RST);
				assert_int_equal(h.src_cid, cids[i]);
				assert_int_equal(h.src_port, ports[k]);
				assert_int_equal(h.dst_port, 1024);
				fake_assert_no_packet(f);
				tried++;
			}
	assert_int_equal(tried, ARRAY_SIZE(cids) * ARRAY_SIZE(ports) * 4 - 1);
	assert_int_equal(f->asks, 0);
	assert_int_equal(vsock_streams(&f->v), 0);
}

static void test_stream(void **state)
{
	struct fake *f = *state;

	for (f->layout = FAKE_RX_SPLIT; f->layout <= FAKE_RX_SHREDS; f->layout++) {
		struct fake_conn c = guest_end(3000);
		struct vsock_hdr h;
		int fd;

		fake_start(f);
		fd = open_stream(f, &c);
		for (int i = 0; i < 100; i++)
			talk(f, &c, fd);
		assert_int_equal(vsock_streams(&f->v), 1);
		if (f->layout == FAKE_RX_SPLIT) { /* the guest closes */
			assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH, NULL, 0));
			fake_assert_eof(fd);
			expect_rst(f, &c);
			close(fd);
		} else { /* the host does */
			close(fd);
			fake_turns(f);
			do
				fake_expect(f, &h, VSOCK_OP_SHUTDOWN);
			while (h.flags != VSOCK_SHUT_BOTH);
			guest_sends(f, &c, VSOCK_OP_RST);
		}
		assert_int_equal(vsock_streams(&f->v), 0);
		fake_assert_quiet(f);
		fake_assert_no_packet(f);
	}
	assert_int_equal(f->v.dev.faults, 0);
	/* Nothing is reported of them but the questions. */
	for (unsigned i = 0; i < FAKE_COOKIES; i++)
		assert_int_equal(f->connects[i] + f->ends[i], 0);
}

/* Credit as for the others, both ways, from the numbers that REQUEST and RESPONSE carry. */
static void test_credit(void **state)
{
	static uint8_t buf[VSOCK_PACKET_MAX], out[50000];
	const uint64_t total = 8u << 20;
	struct fake *f = *state;
	struct fake_conn c = guest_end(3000);
	uint64_t sent = 0, received = 0;
	uint8_t data[FAKE_RX_BUF];
	struct vsock_hdr h;
	unsigned blocked = 0;
	int fd;

	c.buf_alloc = 10000;
	fd = open_stream(f, &c);
	fake_fill(out, 0, sizeof(out));
	assert_int_equal(io_write_some(fd, out, sizeof(out)), sizeof(out));
	fake_turns(f);
	while (fake_rx(f, &h, data, true)) {
		fake_check(data, received, h.len);
		received += h.len;
	}
	assert_int_equal(received, 10000); /* what the REQUEST had offered */
	c.fwd_cnt = 10000;
	c.buf_alloc = 100000;
	guest_sends(f, &c, VSOCK_OP_CREDIT_UPDATE);
	fake_turns(f);
	while (fake_rx(f, &h, data, true)) {
		fake_check(data, received, h.len);
		received += h.len;
	}
	assert_int_equal(received, sizeof(out));
	c.fwd_cnt = (uint32_t)received;
	received = 0;
	while (received < total) {
		uint32_t room = c.peer_alloc - (c.tx_cnt - c.peer_fwd);
		uint32_t len = room < sizeof(buf) ? room : sizeof(buf);
		ssize_t n;

		blocked += room == 0;
		fake_fill(buf, sent, len);
		if (len)
			assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, buf, len));
		c.tx_cnt += len;
		sent += len;
		n = io_read_some(fd, buf, 30011);
		if (n > 0) {
			fake_check(buf, received, (size_t)n);
			received += (size_t)n;
		}
		fake_turn(f);
		while (fake_rx(f, &h, NULL, true)) {
			assert_int_equal(h.op, VSOCK_OP_CREDIT_UPDATE);
			fake_guest_sees(&c, &h);
		}
	}
	assert_true(blocked > 10);
	/* One byte more than its credit. */
	while ((h.len = c.peer_alloc - (c.tx_cnt - c.peer_fwd)) > 0) {
		if (h.len > sizeof(buf))
			h.len = sizeof(buf);
		assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, buf, h.len));
		c.tx_cnt += h.len;
		while (fake_rx(f, &h, NULL, true))
			fake_guest_sees(&c, &h);
	}
	assert_int_equal(f->v.bad_packets, 0);
	assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, buf, 1));
	expect_rst(f, &c);
	assert_int_equal(vsock_streams(&f->v), 0);
	close(fd);
}

static void test_reject(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = guest_end(1024);
	uint32_t id = ask(f, &c);

	vsock_reject(&f->v, id);
	expect_rst(f, &c);
	fake_assert_no_packet(f);
	assert_int_equal(vsock_streams(&f->v), 0);
	/* It may ask again, and the old answer is none to that. */
	assert_int_not_equal(ask(f, &c), id);
	vsock_reject(&f->v, id);
	fake_assert_no_packet(f);
	assert_int_equal(vsock_streams(&f->v), 1);
}

/* Answers to what nobody asked, or asked once: their sockets are closed, nothing else. */
static void test_answers_to_nothing(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = guest_end(1034), d = guest_end(1035);
	uint32_t id = ask(f, &c), untold;
	int fd, other;

	guest_sends(f, &d, VSOCK_OP_REQUEST);
	untold = f->v.conn[VSOCK_CONNS + 1035 % VSOCK_GUEST_CONNS].cookie;
	const uint32_t wrong[] = {0, 1, 63, 64, id ^ 1, id + 64, id - 64, ~id, untold};

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		other = answer(f, wrong[i], -ENOENT);
		fake_assert_eof(other);
		close(other);
		vsock_reject(&f->v, wrong[i]);
		fake_assert_no_packet(f);
	}
	assert_int_equal(vsock_streams(&f->v), 2);
	fd = answer(f, id, 0);
	other = answer(f, id, -ENOENT); /* once is enough */
	fake_assert_eof(other);
	close(other);
	vsock_reject(&f->v, id);
	struct vsock_hdr h;

	fake_expect(f, &h, VSOCK_OP_RESPONSE);
	talk(f, &c, fd);
	assert_int_equal(vsock_next_asked(&f->v), untold);
	close(fd);
}

/* Any socket that cannot be watched: the guest is refused. */
static void test_accept_without_a_socket(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = guest_end(1024);
	int fd = memfd_create("no socket", MFD_CLOEXEC);

	assert_int_equal(vsock_accept(&f->v, ask(f, &c), fd), -EPERM);
	expect_rst(f, &c);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_int_equal(vsock_streams(&f->v), 0);
}

/* As many as there may be, on ports that all want the same slot; each is found, none is mixed up.
 */
static void test_limit(void **state)
{
	enum { N = VSOCK_GUEST_CONNS };
	struct fake *f = *state;
	struct fake_conn c[N], more = guest_end(77);
	uint32_t id[N];
	int fd[N];

	for (unsigned i = 0; i < N; i++) {
		c[i] = guest_end(5 + 64 * i);
		id[i] = ask(f, &c[i]);
		for (unsigned k = 0; k < i; k++)
			assert_int_not_equal(id[k], id[i]);
		fd[i] = answer(f, id[i], 0);
		struct vsock_hdr h;

		fake_expect(f, &h, VSOCK_OP_RESPONSE);
	}
	assert_int_equal(vsock_streams(&f->v), N);
	guest_sends(f, &more, VSOCK_OP_REQUEST);
	expect_rst(f, &more);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	assert_int_equal(f->v.bad_packets, 0);
	for (unsigned i = 0; i < N; i++)
		talk(f, &c[i], fd[i]);
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
		talk(f, &c[i], fd[i]);
	/* Gaps in the row hide nobody behind them. */
	for (unsigned i = 0; i < N; i += 2) {
		guest_sends(f, &c[i], VSOCK_OP_RST);
		fake_assert_eof(fd[i]);
		close(fd[i]);
	}
	for (unsigned i = 1; i < N; i += 2)
		talk(f, &c[i], fd[i]);
	for (unsigned i = 0; i < N; i += 2)
		fd[i] = open_stream(f, &c[i]);
	for (unsigned i = 0; i < N; i++)
		talk(f, &c[i], fd[i]);
	for (unsigned i = 0; i < N; i++)
		close(fd[i]);
}

/* A stream whose host has left and whose guest does not say so makes room for another. */
static void test_left_by_the_host(void **state)
{
	enum { N = VSOCK_GUEST_CONNS };
	struct fake *f = *state;
	struct fake_conn c[N], more = guest_end(77);
	struct vsock_hdr h;
	int fd[N];

	for (unsigned i = 0; i < N; i++) {
		c[i] = guest_end(1000 + i);
		fd[i] = open_stream(f, &c[i]);
	}
	close(fd[20]);
	fake_turns(f);
	while (fake_rx(f, &h, NULL, true))
		assert_int_equal(h.dst_port, c[20].guest_port);
	assert_int_equal(vsock_streams(&f->v), N);
	guest_sends(f, &more, VSOCK_OP_REQUEST);
	expect_rst(f, &c[20]);
	fd[20] = answer(f, vsock_next_asked(&f->v), 0);
	fake_expect(f, &h, VSOCK_OP_RESPONSE);
	talk(f, &more, fd[20]);
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
		c[i] = guest_end(2000 + i);
		guest_sends(f, &c[i], VSOCK_OP_REQUEST);
	}
	for (; handed < VSOCK_ASKING; handed++)
		assert_int_not_equal(id[handed] = vsock_next_asked(&f->v), 0);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	for (unsigned i = 0; handed < N; i++) {
		asks = f->asks;
		if (i % 3)
			vsock_reject(&f->v, id[i * 7 % VSOCK_ASKING]);
		else
			close(answer(f, id[i * 7 % VSOCK_ASKING], 0));
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
	struct fake_conn c = guest_end(0);
	uint32_t id[VSOCK_ASKING], taken;
	unsigned handed = 0;
	struct vsock_hdr h;

	for (uint32_t i = 0; i < 5000; i++) {
		c.guest_port = i;
		guest_sends(f, &c, VSOCK_OP_REQUEST);
		taken = vsock_next_asked(&f->v);
		if (taken) {
			assert_true(handed < VSOCK_ASKING);
			id[handed++] = taken;
		}
		if (i % 3 == 0) { /* three ways to give up */
			guest_sends(f, &c, VSOCK_OP_RST);
		} else if (i % 3 == 1) {
			guest_sends(f, &c, VSOCK_OP_REQUEST);
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
			fake_assert_eof(fd = answer(f, id[i], -ENOENT));
		if (fd >= 0)
			close(fd);
	}
	fake_assert_no_packet(f);
	assert_int_equal(vsock_streams(&f->v), 0);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	c.guest_port = 9;
	talk(f, &c, open_stream(f, &c));
	assert_true(virtio_dev_active(f->dev));
}

/* Given up before the owner has taken it: it never hears of it. */
static void test_given_up_at_once(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = guest_end(1024);

	guest_sends(f, &c, VSOCK_OP_REQUEST);
	guest_sends(f, &c, VSOCK_OP_RST);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	assert_int_equal(vsock_streams(&f->v), 0);
	fake_assert_no_packet(f);
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
			struct fake_conn c = guest_end(1024 + i);
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
			guest_sends(f, &c, VSOCK_OP_REQUEST);
			if (at != UNTOLD)
				id = vsock_next_asked(&f->v);
			if (at >= ACCEPTED)
				fd = answer(f, id, 0);
			if (at == OPEN)
				fake_expect(f, &h, VSOCK_OP_RESPONSE);
			assert_true(fake_tx(f, &c, ops[i], 3, ops[i] == VSOCK_OP_RW ? "x" : NULL,
					    ops[i] == VSOCK_OP_RW));
			if (at == ACCEPTED) {
				fake_post_rx(f, 0);
				fake_kick(f, VSOCK_QUEUE_RX);
			}
			expect_rst(f, &c);
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

/* What the host sends before the guest can be told is kept; and so is its end. */
static void test_host_is_quick(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = guest_end(1024);
	uint8_t data[FAKE_RX_BUF];
	struct vsock_hdr h;
	int fd;

	fake_negotiate(f);
	for (unsigned q = 0; q < VSOCK_QUEUES; q++)
		fake_setup_queue(f, q, FAKE_QUEUE);
	fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
	guest_sends(f, &c, VSOCK_OP_REQUEST);
	fd = answer(f, vsock_next_asked(&f->v), 0);
	assert_int_equal(io_write_some(fd, "too many", 8), 8);
	close(fd);
	fake_assert_quiet(f);
	for (unsigned i = 0; i < fake_rx_slots(f); i++)
		fake_post_rx(f, i);
	fake_kick(f, VSOCK_QUEUE_RX);
	fake_expect(f, &h, VSOCK_OP_RESPONSE);
	assert_true(fake_rx(f, &h, data, true));
	assert_int_equal(h.op, VSOCK_OP_RW);
	assert_int_equal(h.len, 8);
	assert_memory_equal(data, "too many", 8);
	do
		fake_expect(f, &h, VSOCK_OP_SHUTDOWN);
	while (h.flags != VSOCK_SHUT_BOTH);
	guest_sends(f, &c, VSOCK_OP_RST);
	assert_int_equal(vsock_streams(&f->v), 0);
}

/* Off: what the guest has opened, or asked for, is reset; what the host has opened is not. */
static void test_switched_off(void **state)
{
	struct fake *f = *state;
	struct fake_conn c[4], own = {.guest_port = 9};
	struct vsock_hdr h;
	uint32_t id, seen = 0;
	int fd[2], host, late;
	char byte;

	host = fake_connect(f, &own, 1);
	for (unsigned i = 0; i < 4; i++)
		c[i] = guest_end(100 + i);
	fd[0] = open_stream(f, &c[0]);
	fd[1] = open_stream(f, &c[1]);
	id = ask(f, &c[2]);
	guest_sends(f, &c[3], VSOCK_OP_REQUEST); /* not handed out yet */
	assert_true(fake_tx(f, &c[0], VSOCK_OP_RW, 0, "x", 1));
	vsock_set_egress(&f->v, false);
	for (int i = 0; i < 4; i++) {
		fake_expect(f, &h, VSOCK_OP_RST);
		assert_int_equal(h.src_port, GUEST_EGRESS_PORT);
		seen |= 1u << (h.dst_port - 100);
	}
	assert_int_equal(seen, 0xf);
	fake_assert_no_packet(f);
	assert_int_equal(vsock_streams(&f->v), 1);
	assert_int_equal(io_read_some(fd[0], &byte, 1), 1); /* what had been delivered stays so */
	fake_assert_eof(fd[0]);
	fake_assert_eof(fd[1]);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	late = answer(f, id, -ENOENT);
	fake_assert_eof(late);
	vsock_reject(&f->v, id);
	/* What the guest still sends is refused. */
	assert_true(fake_tx(f, &c[0], VSOCK_OP_RW, 0, "x", 1));
	expect_rst(f, &c[0]);
	assert_true(fake_tx(f, &own, VSOCK_OP_RW, 0, "y", 1));
	assert_int_equal(io_read_some(host, &byte, 1), 1);
	vsock_set_egress(&f->v, false); /* twice is once */
	fake_assert_no_packet(f);
	/* On again: other questions. */
	vsock_set_egress(&f->v, true);
	assert_int_not_equal(ask(f, &c[2]), id);
	vsock_set_egress(&f->v, true);
	assert_int_equal(vsock_streams(&f->v), 2);
	close(fd[0]);
	close(fd[1]);
	close(late);
	close(host);
}

/* The driver starts anew: its connections are over, and the switch is as it was. */
static void test_driver_reset(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = guest_end(1), d = guest_end(2), e = guest_end(3);
	int fd = open_stream(f, &c);
	uint32_t id = ask(f, &d);

	guest_sends(f, &e, VSOCK_OP_REQUEST);
	fake_write(f, VIRTIO_MMIO_STATUS, 0);
	fake_assert_eof(fd);
	assert_int_equal(vsock_streams(&f->v), 1); /* the question that is out */
	assert_int_equal(vsock_next_asked(&f->v), 0);
	fake_start(f);
	fake_assert_no_packet(f);
	close(answer(f, id, -ENOENT));
	assert_int_equal(vsock_streams(&f->v), 0);
	fake_assert_no_packet(f);
	close(fd);
	fd = open_stream(f, &d);
	talk(f, &d, fd);
	close(fd);
}

/* Without receive buffers there is room for so many RSTs and connections together, and no more. */
static void test_places_for_rsts(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = guest_end(0);
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
	struct fake_conn c = guest_end(64), d = guest_end(128);
	uint32_t id;

	f->v.questions = (1u << 26) - 1;
	id = ask(f, &c);
	assert_int_equal(id, VSOCK_GUEST_CONNS); /* slot 0, turn 1 */
	assert_int_not_equal(ask(f, &d), id);
	vsock_reject(&f->v, id);
	expect_rst(f, &c);
}

int main(void)
{
#define T(name)   cmocka_unit_test_setup_teardown(name, setup_on, fake_teardown)
#define OFF(name) cmocka_unit_test_setup_teardown(name, fake_setup, fake_teardown)
	const struct CMUnitTest tests[] = {
		OFF(test_off_at_first),
		T(test_only_that_port),
		T(test_stream),
		T(test_credit),
		T(test_reject),
		T(test_answers_to_nothing),
		T(test_accept_without_a_socket),
		T(test_limit),
		T(test_left_by_the_host),
		T(test_questions_at_a_time),
		T(test_flood_of_questions),
		T(test_given_up_at_once),
		T(test_wrong_state),
		T(test_host_is_quick),
		T(test_switched_off),
		T(test_driver_reset),
		T(test_places_for_rsts),
		T(test_ids_wrap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
