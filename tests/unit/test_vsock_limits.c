/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock device under pressure: exact credit, bounded work and memory, a loop
 * that never spins, and everything that a guest may do wrong.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_driver.h"
#include "lib/io.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A guest opens no connections, whatever it addresses. */
static void test_guest_request_refused(void **state)
{
	static const uint64_t cids[] = {2, 0, 1, 3, 4, 0xffffffff, UINT64_MAX};
	struct fake *f = *state;
	struct vsock_hdr h;

	fake_start(f);
	for (size_t i = 0; i < sizeof(cids) / sizeof(cids[0]); i++)
		for (uint16_t type = 0; type < 4; type++) {
			const struct vsock_hdr req = {
				.src_cid = 3,
				.dst_cid = cids[i],
				.src_port = 1024,
				.dst_port = 5555,
				.type = type,
				.op = VSOCK_OP_REQUEST,
				.buf_alloc = 1 << 18,
			};

			assert_true(fake_tx_hdr(f, &req, NULL, 1));
			fake_expect(f, &h, VSOCK_OP_RST);
			assert_int_equal(h.src_cid, cids[i]);
			assert_int_equal(h.src_port, 5555);
			assert_int_equal(h.dst_port, 1024);
			fake_assert_no_packet(f);
		}
	assert_true(virtio_dev_active(f->dev));
}

static void test_credit_of_guest_exact(void **state)
{
	static uint8_t data[VSOCK_PACKET_MAX];
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct vsock_hdr h;
	const uint8_t *ring;
	uint32_t in_socket;
	size_t sum = 0;
	int fd, cap = 0;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	assert_int_equal(c.peer_alloc, VSOCK_BUF_ALLOC);
	/* Nobody reads: exactly the credit that the guest knows of is accepted. */
	while (c.tx_cnt - c.peer_fwd < c.peer_alloc) {
		uint32_t len = c.peer_alloc - (c.tx_cnt - c.peer_fwd);

		if (len > 60000)
			len = 60000;
		fake_fill(data, c.tx_cnt, len);
		assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, data, len));
		c.tx_cnt += len;
		while (fake_rx(f, &h, NULL, true))
			fake_guest_sees(&c, &h);
		assert_true(cap++ < 1000);
	}
	fake_assert_quiet(f);
	assert_int_equal(f->report[1], FAKE_CONNECTED);
	/* fwd_cnt is what the socket has taken, no byte more. */
	assert_true(fake_tx(f, &c, VSOCK_OP_CREDIT_REQUEST, 0, NULL, 0));
	fake_expect(f, &h, VSOCK_OP_CREDIT_UPDATE);
	fake_guest_sees(&c, &h);
	in_socket = h.fwd_cnt;
	assert_true(in_socket < c.tx_cnt);
	for (size_t want = in_socket; sum < want;) {
		ssize_t n = io_read_some(fd, data,
					 want - sum < sizeof(data) ? want - sum : sizeof(data));

		assert_true(n > 0);
		fake_check(data, sum, (size_t)n);
		sum += (size_t)n;
	}
	assert_int_equal(io_read_some(fd, data, 1), -EAGAIN);
	/* Room in the socket lets the ring move on, and the guest hears of it. */
	fake_turns(f);
	fake_expect(f, &h, VSOCK_OP_CREDIT_UPDATE);
	fake_guest_sees(&c, &h);
	assert_true(h.fwd_cnt > in_socket);
	for (;;) {
		ssize_t n = io_read_some(fd, data, sizeof(data));

		if (n <= 0)
			break;
		fake_check(data, sum, (size_t)n);
		sum += (size_t)n;
		fake_turns(f);
	}
	assert_int_equal(sum, c.tx_cnt);
	assert_int_equal(f->v.dev.faults, 0);
	/* With the connection the memory of its ring goes, too. */
	ring = f->v.conn[c.host_port % VSOCK_CONNS].ring;
	assert_int_equal(ring[VSOCK_BUF_ALLOC - 1], fake_pattern(VSOCK_BUF_ALLOC - 1));
	assert_true(fake_tx(f, &c, VSOCK_OP_RST, 0, NULL, 0));
	assert_int_equal(ring[VSOCK_BUF_ALLOC - 1], 0);
	close(fd);
}

static void test_credit_violation(void **state)
{
	static uint8_t data[VSOCK_PACKET_MAX];
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct vsock_hdr h;
	int fd, other;
	struct fake_conn c2 = {.guest_port = 2};

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	other = fake_connect(f, &c2, 2);
	for (;;) {
		uint32_t room;

		while (fake_rx(f, &h, NULL, true))
			fake_guest_sees(&c, &h);
		room = c.peer_alloc - (c.tx_cnt - c.peer_fwd);
		if (room == 0)
			break;
		if (room > sizeof(data))
			room = sizeof(data);
		assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, data, room));
		c.tx_cnt += room;
	}
	assert_int_equal(f->v.bad_packets, 0);
	assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, data, 1)); /* one byte too many */
	fake_expect(f, &h, VSOCK_OP_RST);
	assert_int_equal(f->report[1], FAKE_CLOSED);
	assert_int_equal(f->v.bad_packets, 1);
	/* The other connection does not notice. */
	assert_true(virtio_dev_active(f->dev));
	assert_true(fake_tx(f, &c2, VSOCK_OP_RW, 0, "x", 1));
	assert_int_equal(io_read_some(other, data, 10), 1);
	close(fd);
	close(other);
}

static void test_credit_of_host_exact(void **state)
{
	static uint8_t buf[50000];
	struct fake *f = *state;
	struct fake_conn c = {.buf_alloc = 10000};
	uint8_t data[FAKE_RX_BUF];
	struct vsock_hdr h;
	uint64_t received = 0;
	static const struct {
		uint32_t fwd, alloc, expect; /* bytes delivered in all after this update */
	} step[] = {
		{0, 10000, 10000},      {3000, 10000, 13000}, {3000, 10000, 13000},
		{3001, 10000, 13001},   {3001, 0, 13001},     {13001, 1, 13002},
		{0, 10000, 23001},     /* stale: an older count changes nothing but buf_alloc */
		{40000, 10000, 23001}, /* more than was ever sent: passed over */
		{23001, 100000, 50000},
	};
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	fake_fill(buf, 0, sizeof(buf));
	assert_int_equal(io_write_some(fd, buf, sizeof(buf)), sizeof(buf));
	for (size_t i = 0; i < sizeof(step) / sizeof(step[0]); i++) {
		c.fwd_cnt = step[i].fwd;
		c.buf_alloc = step[i].alloc;
		assert_true(fake_tx(f, &c, VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0));
		fake_turns(f);
		while (fake_rx(f, &h, data, true)) {
			assert_int_equal(h.op, VSOCK_OP_RW);
			fake_check(data, received, h.len);
			received += h.len;
		}
		assert_int_equal(received, step[i].expect);
		fake_assert_quiet(f);
	}
	close(fd);
}

static void test_guest_sends_after_shutdown(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct vsock_hdr h;
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND, NULL, 0));
	assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, "x", 1));
	fake_expect(f, &h, VSOCK_OP_RST);
	assert_int_equal(f->report[1], FAKE_CLOSED);
	close(fd);
}

/* Whatever a connection waits for, it does not keep the loop busy. */
static void test_nothing_spins(void **state)
{
	static uint8_t data[VSOCK_PACKET_MAX];
	struct fake *f = *state;
	struct fake_conn c[5];
	struct vsock_hdr h;
	int fd[5];

	memset(c, 0, sizeof(c));
	fake_start(f);
	for (unsigned i = 0; i < 5; i++) {
		c[i].guest_port = 100 + i;
		c[i].buf_alloc = i == 1 ? 10 : 1 << 18;
		fd[i] = fake_connect(f, &c[i], i);
	}
	fake_assert_quiet(f); /* idle */
	assert_int_equal(io_write_some(fd[1], data, 1000), 1000);
	fake_assert_quiet(f); /* no credit */
	close(fd[1]);
	fake_assert_quiet(f); /* no credit, and hung up */
	for (int i = 0; i < 4; i++)
		assert_true(fake_tx(f, &c[2], VSOCK_OP_RW, 0, data, sizeof(data)));
	fake_assert_quiet(f); /* a host that does not read */
	/* No receive buffers any more: takes them all and posts none. */
	assert_int_equal(io_write_some(fd[3], data, sizeof(data)), sizeof(data));
	assert_int_equal(io_write_some(fd[4], data, sizeof(data)), sizeof(data));
	for (int i = 0; i < 100; i++) {
		fake_turn(f);
		while (fake_rx(f, &h, NULL, false))
			;
		if (io_write_some(fd[3], data, sizeof(data)) < 0)
			break;
	}
	fake_assert_quiet(f);
	shutdown(fd[3], SHUT_WR);
	fake_assert_quiet(f);
	close(fd[3]);
	close(fd[4]);
	fake_assert_quiet(f);
	close(fd[2]);
	close(fd[0]);
	fake_assert_quiet(f);
	assert_true(virtio_dev_active(f->dev));
}

/* Places for RSTs are bounded: transmit stands still until the guest gives buffers; none is lost.
 */
static void test_rst_back_pressure(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {.buf_alloc = 1 << 18};
	struct vsock_hdr h;
	uint32_t next = 1, seen = 1, want = 2000;

	fake_negotiate(f);
	for (unsigned q = 0; q < VSOCK_QUEUES; q++)
		fake_setup_queue(f, q, FAKE_QUEUE);
	fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
	/* No receive buffer is posted yet. */
	for (;; next++) {
		c.guest_port = next;
		c.host_port = 1;
		if (!fake_tx(f, &c, VSOCK_OP_REQUEST, 0, NULL, 0))
			break;
		assert_true(next < 1000);
	}
	assert_int_equal(f->v.rst_len, VSOCK_RSTS);
	assert_true(next > VSOCK_RSTS);
	fake_assert_quiet(f);
	/* New connections find no place either, and say so. */
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	assert_int_equal(vsock_connect(&f->v, 1, sv[0], 1), -EAGAIN);
	fake_assert_eof(sv[1]); /* taken over, closed */
	close(sv[1]);

	for (unsigned i = 0; i < fake_rx_slots(f); i++)
		fake_post_rx(f, i);
	fake_kick(f, VSOCK_QUEUE_RX);
	while (seen < want) {
		fake_turn(f);
		while (fake_rx(f, &h, NULL, true)) {
			assert_int_equal(h.op, VSOCK_OP_RST);
			assert_int_equal(h.dst_port, seen); /* each, in order */
			seen++;
		}
		c.guest_port = next;
		if (next < want && fake_tx(f, &c, VSOCK_OP_REQUEST, 0, NULL, 0))
			next++;
	}
	fake_assert_no_packet(f);
	assert_true(virtio_dev_active(f->dev));
	assert_int_equal(f->v.dev.faults, 0);
}

/* A whole ring of packets behind one notification takes several turns of the loop. */
static void test_work_is_bounded(void **state)
{
	struct fake *f = *state;
	struct vsock_hdr h = {.src_cid = 3, .dst_cid = 2, .type = 1, .op = VSOCK_OP_REQUEST};
	unsigned n = 0;

	f->layout = FAKE_RX_SINGLE;
	fake_start(f);
	for (uint16_t i = 0; i < FAKE_QUEUE; i++) {
		struct fake_seg seg = {f->tx_area + 64u * i, VSOCK_HDR_BYTES, false};

		h.src_port = i;
		vsock_hdr_pack(fake_ptr(f, seg.addr), &h);
		fake_chain(f, VSOCK_QUEUE_TX, i, &seg, 1);
	}
	fake_kick(f, VSOCK_QUEUE_TX);
	while (fake_rx(f, &h, NULL, false))
		n++;
	assert_true(n >= 32 && n < FAKE_QUEUE);
	assert_true(fake_turn(f) > 0);
	fake_turns(f);
	while (fake_rx(f, &h, NULL, false))
		n++;
	assert_int_equal(n, FAKE_QUEUE);
	fake_assert_quiet(f);
}

/* What is wrong with a queue costs the guest the device; all connections end. */
static void test_broken_queue(void **state)
{
	struct fake *f = *state;

	for (int kind = 0; kind < 5; kind++) {
		struct fake_conn c = {0};
		uint32_t cookie = 20 + (uint32_t)kind;
		struct fake_seg seg = {0x100000, 44, true};
		uint16_t idx;
		int fd;

		fake_start(f);
		fd = fake_connect(f, &c, cookie);
		switch (kind) {
		case 0: /* a transmit buffer outside RAM */
			seg = (struct fake_seg){FAKE_RAM - 10, 44, false};
			fake_chain(f, VSOCK_QUEUE_TX, 0, &seg, 1);
			fake_kick(f, VSOCK_QUEUE_TX);
			break;
		case 1: /* a ring index that jumps */
			idx = 5000;
			memcpy(fake_ptr(f, f->q[VSOCK_QUEUE_TX].avail + 2), &idx, 2);
			fake_kick(f, VSOCK_QUEUE_TX);
			break;
		case 2: /* the same for receive buffers, found when the host writes */
			idx = 5000;
			memcpy(fake_ptr(f, f->q[VSOCK_QUEUE_RX].avail + 2), &idx, 2);
			assert_int_equal(io_write_some(fd, "x", 1), 1);
			fake_turns(f);
			break;
		case 3: /* a register that is frozen */
			fake_write(f, VIRTIO_MMIO_QUEUE_NUM, 256);
			break;
		case 4: /* a queue that does not exist */
			fake_kick(f, VSOCK_QUEUES);
			break;
		}
		assert_int_equal(fake_read(f, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_STATUS_NEEDS_RESET);
		assert_true(fake_read(f, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_INT_CONFIG);
		fake_assert_ended(fd);
		assert_int_equal(f->report[cookie], FAKE_CLOSED);
		assert_int_equal(vsock_streams(&f->v), 0);
		assert_int_equal(f->v.dev.faults, (unsigned)kind + 1);
		close(fd);
		fake_assert_quiet(f);
	}
}

/* A receive buffer without room for a byte of data, or one that the device cannot write to. */
static void test_bad_receive_buffers(void **state)
{
	static const struct fake_seg bad[] = {
		{0x100000, VSOCK_HDR_BYTES, true},
		{0x100000, 1, true},
		{0x100000, FAKE_RX_BUF, false},
	};
	struct fake *f = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int fd;

		fake_negotiate(f);
		for (unsigned q = 0; q < VSOCK_QUEUES; q++)
			fake_setup_queue(f, q, FAKE_QUEUE);
		fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
		fd = fake_connect_start(f, 1, 1);
		fake_chain(f, VSOCK_QUEUE_RX, 0, &bad[i], 1);
		fake_kick(f, VSOCK_QUEUE_RX);
		assert_true(fake_read(f, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
		close(fd);
		fake_turns(f);
	}
}

static void test_queue_missing(void **state)
{
	struct fake *f = *state;

	fake_negotiate(f);
	fake_setup_queue(f, VSOCK_QUEUE_RX, FAKE_QUEUE);
	fake_setup_queue(f, VSOCK_QUEUE_TX, FAKE_QUEUE);
	fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(fake_read(f, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_STATUS_NEEDS_RESET);
}

static void test_bad_headers(void **state)
{
	struct fake *f = *state;
	const struct vsock_hdr good = {.src_cid = 3,
				       .dst_cid = 2,
				       .src_port = 5555,
				       .type = 1,
				       .op = VSOCK_OP_RW,
				       .len = 4,
				       .buf_alloc = 1 << 18};
	static const struct {
		unsigned field; /* 0 len, 1 type, 2 op, 3 src_cid */
		uint64_t v;
	} bad[] = {
		{0, 5}, {0, 0xffffffff},  {0, VSOCK_PACKET_MAX + 1},
		{1, 0}, {1, 2},           {1, 0xffff},
		{2, 0}, {2, 1},           {2, 2},
		{2, 4}, {2, 6},           {2, 7},
		{2, 8}, {2, 0xffff},      {3, 2},
		{3, 4}, {3, 0x100000003},
	};

	fake_start(f);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct fake_conn c = {0};
		uint32_t cookie = 100 + (uint32_t)i;
		uint64_t before = f->v.bad_packets;
		struct vsock_hdr h = good, r;
		int fd = fake_connect(f, &c, cookie);

		h.dst_port = c.host_port;
		if (bad[i].field == 0)
			h.len = (uint32_t)bad[i].v;
		else if (bad[i].field == 1)
			h.type = (uint16_t)bad[i].v;
		else if (bad[i].field == 2)
			h.op = (uint16_t)bad[i].v;
		else
			h.src_cid = bad[i].v;
		/* Four bytes of payload, whatever the header says. */
		uint64_t at = f->tx_area + 0x200000;
		struct fake_seg seg = {at, VSOCK_HDR_BYTES + 4, false};
		uint32_t id, len;

		vsock_hdr_pack(fake_ptr(f, at), &h);
		fake_chain(f, VSOCK_QUEUE_TX, 7, &seg, 1);
		fake_kick(f, VSOCK_QUEUE_TX);
		while (fake_used(f, VSOCK_QUEUE_TX, &id, &len))
			assert_int_equal(len, 0);
		assert_int_equal(f->v.bad_packets, before + 1);
		if (bad[i].field == 3) { /* not from this guest: dropped, nobody harmed */
			fake_assert_no_packet(f);
			assert_int_equal(f->report[cookie], FAKE_CONNECTED);
			assert_true(fake_tx(f, &c, VSOCK_OP_RST, 0, NULL, 0));
		} else {
			fake_expect(f, &r, VSOCK_OP_RST);
			assert_int_equal(r.src_port, c.host_port);
		}
		assert_int_equal(f->report[cookie], FAKE_CLOSED);
		fake_assert_eof(fd);
		close(fd);
	}
	/* Chains too short for a header, in one piece and in three. */
	for (uint32_t pieces = 1; pieces <= 3; pieces += 2) {
		struct fake_seg seg[3] = {{f->tx_area, 43, false}, {0}};
		uint64_t before = f->v.bad_packets;

		if (pieces == 3) {
			seg[0].len = 20;
			seg[1] = (struct fake_seg){f->tx_area + 100, 22, false};
			seg[2] = (struct fake_seg){f->tx_area + 200, 1, false};
		}
		fake_chain(f, VSOCK_QUEUE_TX, 0, seg, pieces);
		fake_kick(f, VSOCK_QUEUE_TX);
		assert_int_equal(f->v.bad_packets, before + 1);
	}
	assert_true(virtio_dev_active(f->dev));
}

/* The guest answers in the wrong state. */
static void test_wrong_state(void **state)
{
	static const enum vsock_op ops[] = {VSOCK_OP_REQUEST, VSOCK_OP_SHUTDOWN, VSOCK_OP_RW,
					    VSOCK_OP_CREDIT_UPDATE, VSOCK_OP_CREDIT_REQUEST};
	struct fake *f = *state;
	struct vsock_hdr h;

	fake_start(f);
	for (unsigned i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		struct fake_conn c = {.guest_port = 5555};
		int fd = fake_connect_start(f, 5555, i);

		fake_expect(f, &h, VSOCK_OP_REQUEST);
		c.host_port = h.src_port;
		assert_true(fake_tx(f, &c, ops[i], 3, ops[i] == VSOCK_OP_RW ? "x" : NULL,
				    ops[i] == VSOCK_OP_RW));
		fake_expect(f, &h, VSOCK_OP_RST);
		assert_int_equal(f->report[i], FAKE_REFUSED);
		close(fd);
	}
	for (unsigned op = VSOCK_OP_REQUEST; op <= VSOCK_OP_RESPONSE; op++) { /* once is enough */
		struct fake_conn c = {0};
		int fd = fake_connect(f, &c, 20 + op);

		assert_true(fake_tx(f, &c, op, 0, NULL, 0));
		fake_expect(f, &h, VSOCK_OP_RST);
		assert_int_equal(f->report[20 + op], FAKE_CLOSED);
		close(fd);
	}
	fake_turns(f);
	assert_int_equal(vsock_streams(&f->v), 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fake_setup, fake_teardown)
	const struct CMUnitTest tests[] = {
		T(test_guest_request_refused),
		T(test_credit_of_guest_exact),
		T(test_credit_violation),
		T(test_credit_of_host_exact),
		T(test_guest_sends_after_shutdown),
		T(test_nothing_spins),
		T(test_rst_back_pressure),
		T(test_work_is_bounded),
		T(test_broken_queue),
		T(test_bad_receive_buffers),
		T(test_queue_missing),
		T(test_bad_headers),
		T(test_wrong_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
