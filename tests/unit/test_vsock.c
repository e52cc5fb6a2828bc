/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock device against a fake guest driver, real socketpairs and the real event
 * loop: streams, their beginning and their end, and many of them.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_driver.h"
#include "lib/io.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

static void test_talk(void **state)
{
	struct fake *f = *state;

	for (f->layout = FAKE_RX_SPLIT; f->layout <= FAKE_RX_SHREDS; f->layout++) {
		struct fake_conn c = {0};
		uint8_t in[FAKE_RX_BUF], out[5000], got[5000];
		uint32_t cookie = 10 + f->layout;
		struct vsock_hdr h;
		uint32_t n = 0;
		int fd;

		fake_start(f);
		assert_int_equal(f->v.dev.faults, 0);
		fd = fake_connect(f, &c, cookie);
		fake_fill(out, 0, sizeof(out));
		assert_int_equal(io_write_some(fd, out, sizeof(out)), sizeof(out));
		fake_turns(f);
		while (fake_rx(f, &h, in, true)) {
			assert_int_equal(h.op, VSOCK_OP_RW);
			fake_check(in, n, h.len);
			n += h.len;
		}
		assert_int_equal(n, sizeof(out));
		for (uint32_t len = 1; len <= sizeof(out); len = len * 3 + 1) {
			assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, out, len));
			assert_int_equal(io_read_some(fd, got, sizeof(got)), len);
			assert_memory_equal(got, out, len);
		}
		assert_true(f->irqs > 0);
		assert_int_equal(vsock_streams(&f->v), 1);
		/* The guest closes: everything is over on both sides. */
		assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH, NULL, 0));
		fake_expect(f, &h, VSOCK_OP_RST);
		fake_assert_eof(fd);
		assert_int_equal(f->report[cookie], FAKE_CLOSED);
		assert_int_equal(f->ends[cookie], 1);
		assert_int_equal(vsock_streams(&f->v), 0);
		close(fd);
		fake_assert_quiet(f);
	}
	assert_int_equal(f->v.dev.faults, 0);
}

static void test_refused_by_guest(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {.guest_port = 77};
	struct vsock_hdr h;
	int fd;

	fake_start(f);
	fd = fake_connect_start(f, 77, 1);
	fake_expect(f, &h, VSOCK_OP_REQUEST);
	c.host_port = h.src_port;
	assert_true(fake_tx(f, &c, VSOCK_OP_RST, 0, NULL, 0));
	assert_int_equal(f->report[1], FAKE_REFUSED);
	assert_int_equal(f->refused_with[1], ECONNREFUSED);
	fake_assert_eof(fd);
	fake_assert_no_packet(f); /* an RST is not answered */
	assert_int_equal(vsock_streams(&f->v), 0);
	close(fd);
}

static void test_connect_before_driver(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {.guest_port = 5555, .buf_alloc = 1 << 18};
	struct vsock_hdr h;
	uint8_t data[FAKE_RX_BUF];
	int a = fake_connect_start(f, 5555, 1);
	int b = fake_connect_start(f, 6666, 2);

	assert_int_equal(io_write_some(a, "early", 5), 5);
	fake_assert_quiet(f);
	fake_write(f, VIRTIO_MMIO_STATUS, 0); /* a driver begins with a reset */
	assert_int_equal(vsock_streams(&f->v), 2);
	close(b); /* one gives up: no trace of it */
	fake_turns(f);
	assert_int_equal(f->report[2], FAKE_REFUSED);
	assert_int_equal(f->refused_with[2], ECANCELED);
	assert_int_equal(vsock_streams(&f->v), 1);
	fake_assert_quiet(f);

	fake_start(f);
	fake_expect(f, &h, VSOCK_OP_REQUEST);
	assert_int_equal(h.dst_port, 5555);
	fake_assert_no_packet(f);
	c.host_port = h.src_port;
	assert_true(fake_tx(f, &c, VSOCK_OP_RESPONSE, 0, NULL, 0));
	assert_int_equal(f->report[1], FAKE_CONNECTED);
	assert_true(fake_rx(f, &h, data, true)); /* what was written long ago */
	assert_int_equal(h.len, 5);
	assert_memory_equal(data, "early", 5);
	close(a);
}

static void test_withdrawn_request(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {.guest_port = 5555};
	struct vsock_hdr h;
	int fd;

	fake_start(f);
	fd = fake_connect_start(f, 5555, 1);
	fake_expect(f, &h, VSOCK_OP_REQUEST);
	c.host_port = h.src_port;
	close(fd);
	fake_turns(f);
	assert_int_equal(f->report[1], FAKE_REFUSED);
	assert_int_equal(f->refused_with[1], ECANCELED);
	fake_expect(f, &h, VSOCK_OP_RST);
	assert_int_equal(h.src_port, c.host_port);
	fake_assert_quiet(f);
	assert_int_equal(vsock_streams(&f->v), 0);
	/* The answer comes too late: the guest is told that nobody is there. */
	assert_true(fake_tx(f, &c, VSOCK_OP_RESPONSE, 0, NULL, 0));
	fake_expect(f, &h, VSOCK_OP_RST);
	assert_int_equal(f->connects[1], 0);
	assert_int_equal(f->ends[1], 1);
}

static void test_bulk_to_host(void **state)
{
	const uint64_t total = 100 * MIB;
	struct fake *f = *state;
	static uint8_t buf[VSOCK_PACKET_MAX], got[100 * KIB];
	struct fake_conn c = {0};
	uint64_t sent = 0, received = 0;
	unsigned round = 0, blocked = 0;
	struct vsock_hdr h;
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	while (received < total) {
		uint32_t room = c.peer_alloc - (c.tx_cnt - c.peer_fwd);
		uint32_t len = 1 + round * 7919 % VSOCK_PACKET_MAX;
		ssize_t n;

		round++;
		if (len > room)
			len = room;
		if (len > total - sent)
			len = (uint32_t)(total - sent);
		blocked += room == 0;
		if (len) {
			fake_fill(buf, sent, len);
			assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, buf, len));
			c.tx_cnt += len;
			sent += len;
		}
		/* A reader that is slower than the writer, now and then much slower. */
		if (round % 4 != 0 || len == 0) {
			n = io_read_some(fd, got, 1 + round * 104729 % sizeof(got));
			if (n > 0) {
				fake_check(got, received, (size_t)n);
				received += (size_t)n;
			}
		}
		fake_turn(f);
		while (fake_rx(f, &h, NULL, true)) {
			assert_int_equal(h.op, VSOCK_OP_CREDIT_UPDATE);
			fake_guest_sees(&c, &h);
			assert_true(h.fwd_cnt - (uint32_t)received <= 300 * KIB);
		}
	}
	assert_int_equal(sent, total);
	assert_true(blocked > 10); /* credit was the brake */
	assert_int_equal(f->v.dev.faults, 0);
	assert_int_equal(f->report[1], FAKE_CONNECTED);
	close(fd);
}

static void test_bulk_to_guest(void **state)
{
	const uint64_t total = 100 * MIB;
	struct fake *f = *state;
	static uint8_t buf[64 * KIB];
	struct fake_conn c = {.buf_alloc = 100000};
	uint64_t sent = 0, received = 0, consumed = 0;
	unsigned round = 0, blocked = 0;
	uint8_t data[FAKE_RX_BUF];
	struct vsock_hdr h;
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	while (received < total) {
		size_t len = 1 + round * 7919 % sizeof(buf);
		ssize_t n;

		round++;
		if (len > total - sent)
			len = (size_t)(total - sent);
		fake_fill(buf, sent, len);
		n = len ? io_write_some(fd, buf, len) : 0;
		blocked += n < 0;
		if (n > 0)
			sent += (size_t)n;
		fake_turn(f);
		for (unsigned i = 0; i < 1 + round % 40 && fake_rx(f, &h, data, true); i++) {
			assert_int_equal(h.op, VSOCK_OP_RW);
			fake_check(data, received, h.len);
			received += h.len;
			/* Never more with the guest than it has said it has room for. */
			assert_true(received - consumed <= c.buf_alloc);
		}
		if (round % 3 == 0) {
			consumed += (received - consumed) * (round % 5) / 4;
			c.fwd_cnt = (uint32_t)consumed;
			assert_true(fake_tx(f, &c, VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0));
		}
	}
	assert_int_equal(received, total);
	assert_true(blocked > 10);
	assert_int_equal(f->v.dev.faults, 0);
	close(fd);
}

/* Many connections at once share few receive buffers; none starves, no byte is mixed up. */
static void test_many_streams(void **state)
{
	enum { N = 100 };
	struct fake *f = *state;
	static struct fake_conn c[N];
	uint64_t in[N] = {0};
	int fd[N];
	uint8_t data[FAKE_RX_BUF], out[20 * KIB];
	struct vsock_hdr h;
	unsigned done = 0;

	memset(c, 0, sizeof(c));
	fake_start(f);
	for (unsigned i = 0; i < N; i++) {
		c[i].guest_port = 1000 + i;
		fd[i] = fake_connect(f, &c[i], i);
	}
	for (unsigned i = 0; i < N; i++) {
		fake_fill(out, i * 1000, sizeof(out));
		assert_int_equal(io_write_some(fd[i], out, sizeof(out)), sizeof(out));
		assert_int_equal(shutdown(fd[i], SHUT_WR), 0);
	}
	for (unsigned round = 0; done < N; round++) {
		assert_true(round < 10000);
		fake_turn(f);
		for (unsigned k = 0; k < 3 && fake_rx(f, &h, data, true); k++) {
			unsigned i = h.dst_port - 1000;

			assert_true(i < N);
			if (h.op == VSOCK_OP_SHUTDOWN) {
				assert_int_equal(in[i], sizeof(out));
				assert_int_equal(h.flags, VSOCK_SHUT_SEND);
				done++;
				continue;
			}
			fake_check(data, i * 1000 + in[i], h.len);
			in[i] += h.len;
		}
		/* In turn: after 180 packets everybody has had one, and nobody more than three. */
		for (unsigned i = 0; round == 60 && i < N; i++)
			assert_true(in[i] > 0 && in[i] <= 3 * FAKE_RX_BUF);
	}
	for (unsigned i = 0; i < N; i++)
		close(fd[i]);
}

static void test_guest_half_close(void **state)
{
	static uint8_t data[VSOCK_PACKET_MAX];
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct vsock_hdr h;
	size_t sum = 0;
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	for (int i = 0; i < 4; i++) { /* more than the socket takes */
		assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, data, sizeof(data)));
		c.tx_cnt += sizeof(data);
	}
	assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND, NULL, 0));
	for (int i = 0; i < 20 && sum < c.tx_cnt; i++) {
		sum += fake_drain(fd);
		fake_turns(f);
	}
	assert_int_equal(sum, c.tx_cnt); /* every byte, then EOF */
	fake_assert_eof(fd);
	assert_int_equal(f->report[1], FAKE_CONNECTED);
	/* The other direction goes on. */
	while (fake_rx(f, &h, NULL, true))
		assert_int_equal(h.op, VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(io_write_some(fd, "still", 5), 5);
	fake_turns(f);
	fake_expect(f, &h, VSOCK_OP_RW);
	assert_int_equal(h.len, 5);
	/* The host ends it: the guest sees the end of the stream and answers. */
	close(fd);
	fake_turns(f);
	do
		fake_expect(f, &h, VSOCK_OP_SHUTDOWN);
	while (h.flags != VSOCK_SHUT_BOTH);
	assert_int_equal(f->report[1], FAKE_CLOSED);
	assert_int_equal(vsock_streams(&f->v), 1);
	assert_true(fake_tx(f, &c, VSOCK_OP_RST, 0, NULL, 0));
	assert_int_equal(vsock_streams(&f->v), 0);
	assert_int_equal(f->ends[1], 1);
	fake_assert_quiet(f);
}

static void test_host_half_close(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {0};
	uint8_t data[FAKE_RX_BUF], out[30000];
	uint32_t received = 0;
	struct vsock_hdr h;
	char got[8];
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	fake_fill(out, 0, sizeof(out));
	assert_int_equal(io_write_some(fd, out, sizeof(out)), sizeof(out));
	assert_int_equal(shutdown(fd, SHUT_WR), 0);
	fake_turns(f);
	while (fake_rx(f, &h, data, true) && h.op == VSOCK_OP_RW) {
		fake_check(data, received, h.len);
		received += h.len;
	}
	assert_int_equal(received, sizeof(out)); /* every byte, then the end */
	assert_int_equal(h.op, VSOCK_OP_SHUTDOWN);
	assert_int_equal(h.flags, VSOCK_SHUT_SEND);
	fake_assert_quiet(f);
	/* The guest still answers. */
	assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, "reply", 5));
	assert_int_equal(io_read_some(fd, got, sizeof(got)), 5);
	/* Half-closed both ways: the connection is over; the guest confirms. */
	assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND, NULL, 0));
	fake_assert_eof(fd);
	fake_turns(f);
	assert_int_equal(f->report[1], FAKE_CLOSED);
	fake_expect(f, &h, VSOCK_OP_SHUTDOWN);
	assert_int_equal(h.flags, VSOCK_SHUT_BOTH);
	assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH, NULL, 0));
	fake_expect(f, &h, VSOCK_OP_RST);
	assert_int_equal(vsock_streams(&f->v), 0);
	close(fd);
	fake_assert_quiet(f);
}

static void test_host_closes_with_data_on_the_way(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {.buf_alloc = 5000};
	uint8_t data[FAKE_RX_BUF], out[20000];
	uint32_t received = 0, shut = 0;
	struct vsock_hdr h;
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	fake_fill(out, 0, sizeof(out));
	assert_int_equal(io_write_some(fd, out, sizeof(out)), sizeof(out));
	close(fd);
	for (int i = 0; i < 20; i++) {
		fake_assert_quiet(f);
		while (fake_rx(f, &h, data, true)) {
			if (h.op == VSOCK_OP_RW) {
				fake_check(data, received, h.len);
				received += h.len;
				continue;
			}
			assert_int_equal(h.op, VSOCK_OP_SHUTDOWN);
			/* At once that nobody reads; that nothing more comes only after the data.
			 */
			assert_true(h.flags == VSOCK_SHUT_RCV || received == sizeof(out));
			shut = h.flags;
		}
		if (i == 0) {
			assert_int_equal(received, 5000);
			assert_int_equal(shut, VSOCK_SHUT_RCV);
			assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, "lost", 4)); /* legal, dropped */
		}
		c.fwd_cnt = received;
		assert_true(fake_tx(f, &c, VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0));
	}
	assert_int_equal(received, sizeof(out));
	assert_int_equal(shut, VSOCK_SHUT_BOTH);
	assert_int_equal(f->report[1], FAKE_CLOSED);
	assert_true(fake_tx(f, &c, VSOCK_OP_RST, 0, NULL, 0));
	assert_int_equal(vsock_streams(&f->v), 0);
	assert_int_equal(f->v.bad_packets, 0);
}

static void test_guest_reset_delivers_first(void **state)
{
	static uint8_t data[VSOCK_PACKET_MAX];
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct vsock_hdr h;
	size_t sum = 0;
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	for (int i = 0; i < 4; i++) {
		assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, data, sizeof(data)));
		c.tx_cnt += sizeof(data);
	}
	while (fake_rx(f, &h, NULL, true))
		;
	assert_true(fake_tx(f, &c, VSOCK_OP_RST, 0, NULL, 0));
	assert_int_equal(f->report[1], FAKE_CONNECTED);       /* the socket still owes bytes */
	assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, data, 1)); /* a ghost: answered by RST */
	fake_expect(f, &h, VSOCK_OP_RST);
	fake_assert_quiet(f);
	for (int i = 0; i < 20 && sum < c.tx_cnt; i++) {
		sum += fake_drain(fd);
		fake_turns(f);
	}
	assert_int_equal(sum, c.tx_cnt);
	fake_assert_eof(fd);
	assert_int_equal(f->report[1], FAKE_CLOSED);
	fake_assert_no_packet(f);
	close(fd);
}

static void test_guest_stops_receiving(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct vsock_hdr h;
	char got[4];
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_RCV, NULL, 0));
	assert_int_equal(io_send_some(fd, "x", 1), -EPIPE);
	assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, "out", 3));
	assert_int_equal(io_read_some(fd, got, sizeof(got)), 3);
	assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND, NULL, 0));
	do
		assert_true(fake_rx(f, &h, NULL, true));
	while (h.op != VSOCK_OP_RST);
	fake_assert_eof(fd);
	assert_int_equal(f->report[1], FAKE_CLOSED);
	close(fd);
	fake_assert_quiet(f);
}

static void test_pool(void **state)
{
	struct fake *f = *state;
	static struct fake_conn c[VSOCK_CONNS];
	static int fd[VSOCK_CONNS];
	struct fake_conn more = {.guest_port = 9};
	struct vsock_hdr h;
	int sv[2];

	memset(c, 0, sizeof(c));
	fake_start(f);
	for (unsigned i = 0; i < VSOCK_CONNS; i++) {
		fd[i] = fake_connect(f, &c[i], i);
		for (unsigned k = 0; k < i; k++)
			assert_int_not_equal(c[k].host_port, c[i].host_port);
	}
	assert_int_equal(vsock_streams(&f->v), VSOCK_CONNS);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	assert_int_equal(vsock_connect(&f->v, 9, sv[0], 999), -EAGAIN);
	assert_int_equal(f->report[999], FAKE_NONE);
	close(sv[1]);
	/* One place is free: it is found, and its port is new. */
	assert_true(fake_tx(f, &c[100], VSOCK_OP_RST, 0, NULL, 0));
	close(fd[100]);
	fd[100] = fake_connect(f, &more, 1000);
	for (unsigned k = 0; k < VSOCK_CONNS; k++)
		assert_int_not_equal(c[k].host_port, more.host_port);
	/* A connection whose host has left, and whose guest does not answer, makes place. */
	close(fd[7]);
	fake_turns(f);
	assert_int_equal(f->report[7], FAKE_CLOSED);
	while (fake_rx(f, &h, NULL, true))
		assert_int_equal(h.src_port, c[7].host_port);
	assert_int_equal(vsock_streams(&f->v), VSOCK_CONNS);
	fd[7] = fake_connect_start(f, 10, 1001);
	fake_expect(f, &h, VSOCK_OP_RST);
	assert_int_equal(h.src_port, c[7].host_port);
	fake_expect(f, &h, VSOCK_OP_REQUEST);
	assert_int_equal(f->ends[7], 1);
	for (unsigned i = 0; i < VSOCK_CONNS; i++)
		close(fd[i]);
}

static void test_port_counter_wraps(void **state)
{
	struct fake *f = *state;
	struct fake_conn c[3] = {0};
	int fd[3];

	fake_start(f);
	f->v.next_port = VSOCK_PORT_LAST;
	for (int i = 0; i < 3; i++)
		fd[i] = fake_connect(f, &c[i], (uint32_t)i);
	assert_int_equal(c[0].host_port, VSOCK_PORT_LAST);
	assert_int_equal(c[1].host_port, VSOCK_PORT_FIRST);
	assert_int_equal(c[2].host_port, VSOCK_PORT_FIRST + 1);
	f->v.next_port = VSOCK_PORT_FIRST; /* both are in use: passed over */
	int more = fake_connect(f, &(struct fake_conn){0}, 4);

	assert_int_equal(f->v.next_port, VSOCK_PORT_FIRST + 3);
	close(more);
	for (int i = 0; i < 3; i++)
		close(fd[i]);
}

static void test_device_reset(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct vsock_hdr h;
	int open_fd, requested, waiting;

	fake_start(f);
	open_fd = fake_connect(f, &c, 1);
	requested = fake_connect_start(f, 8, 2);
	fake_expect(f, &h, VSOCK_OP_REQUEST);
	fake_write(f, VIRTIO_MMIO_STATUS, 0);
	waiting = fake_connect_start(f, 9, 3);
	fake_assert_eof(open_fd);
	fake_assert_eof(requested);
	assert_int_equal(f->report[1], FAKE_CLOSED);
	assert_int_equal(f->report[2], FAKE_REFUSED);
	assert_int_equal(f->refused_with[2], ECONNRESET);
	assert_int_equal(f->report[3], FAKE_NONE);
	assert_int_equal(vsock_streams(&f->v), 1);
	fake_start(f);
	fake_expect(f, &h, VSOCK_OP_REQUEST);
	assert_int_equal(h.dst_port, 9);
	fake_assert_no_packet(f);
	close(open_fd);
	close(requested);
	close(waiting);
	fake_assert_quiet(f);
}

static void test_interrupts_and_events(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct fake_seg seg = {0x300000, 4, true};
	uint32_t id, len;
	unsigned irqs;
	int fd;

	fake_start(f);
	fake_chain(f, VSOCK_QUEUE_EVENT, 0, &seg, 1);
	fake_kick(f, VSOCK_QUEUE_EVENT);
	fd = fake_connect(f, &c, 1);
	assert_false(fake_used(f, VSOCK_QUEUE_EVENT, &id, &len)); /* kept */
	fake_avail_flags(f, VSOCK_QUEUE_TX, VIRTQ_AVAIL_F_NO_INTERRUPT);
	irqs = f->irqs;
	assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, "x", 1));
	assert_int_equal(f->irqs, irqs);
	fake_avail_flags(f, VSOCK_QUEUE_TX, 0);
	assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, "x", 1));
	assert_int_equal(f->irqs, irqs + 1);
	assert_int_equal(fake_read(f, VIRTIO_MMIO_CONFIG), VSOCK_GUEST_CID);
	assert_int_equal(fake_read(f, VIRTIO_MMIO_CONFIG + 4), 0);
	assert_int_equal(fake_read(f, VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_VSOCK);
	close(fd);
}

#define ECHO_BYTES (16 * MIB)

static void *echo_host(void *arg)
{
	static uint8_t buf[32 * KIB];
	int fd = *(int *)arg;
	ssize_t n;

	while ((n = io_read_some(fd, buf, sizeof(buf))) > 0)
		if (io_write_full(fd, buf, (size_t)n) < 0)
			break;
	shutdown(fd, SHUT_WR);
	return NULL;
}

static void *run_loop(void *arg)
{
	loop_run(&((struct fake *)arg)->loop);
	return NULL;
}

/*
 * A vCPU thread, the loop thread and a host process, all at their own speed: an
 * echo of 16 MiB. Nobody waits for ever: a wake-up that is lost is a time-out.
 */
static void test_three_threads(void **state)
{
	static uint8_t buf[VSOCK_PACKET_MAX];
	struct fake *f = *state;
	struct fake_conn c = {.buf_alloc = 128 * KIB};
	uint64_t sent = 0, received = 0;
	uint8_t data[FAKE_RX_BUF];
	pthread_t host, loop;
	bool eof = false;
	struct vsock_hdr h;
	int fd;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	assert_int_equal(io_set_nonblock(fd, 0), 0);
	assert_int_equal(pthread_create(&loop, NULL, run_loop, f), 0);
	assert_int_equal(pthread_create(&host, NULL, echo_host, &fd), 0);
	pthread_mutex_lock(&f->lock);
	while (!eof) {
		uint32_t len = c.peer_alloc - (c.tx_cnt - c.peer_fwd);
		bool progress = false;
		struct timespec until;

		if (len > 1 + sent % sizeof(buf))
			len = (uint32_t)(1 + sent % sizeof(buf));
		if (len > ECHO_BYTES - sent)
			len = (uint32_t)(ECHO_BYTES - sent);
		fake_fill(buf, sent, len);
		if (len && fake_tx(f, &c, VSOCK_OP_RW, 0, buf, len)) {
			c.tx_cnt += len;
			sent += len;
			progress = true;
			if (sent == ECHO_BYTES)
				assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND, NULL,
						    0));
		}
		while (fake_rx(f, &h, data, true)) {
			fake_guest_sees(&c, &h);
			eof = eof || h.op == VSOCK_OP_SHUTDOWN;
			fake_check(data, received, h.len);
			received += h.len;
			progress = true;
			if (c.buf_alloc - ((uint32_t)received - c.fwd_cnt) < 64 * KIB) {
				c.fwd_cnt = (uint32_t)received;
				while (!fake_tx(f, &c, VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0))
					;
			}
		}
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += 10;
		if (!progress && !eof)
			assert_int_equal(pthread_cond_timedwait(&f->irq, &f->lock, &until), 0);
		pthread_mutex_unlock(&f->lock); /* as a vCPU between two exits */
		pthread_mutex_lock(&f->lock);
	}
	pthread_mutex_unlock(&f->lock);
	assert_int_equal(received, ECHO_BYTES);
	pthread_join(host, NULL);
	loop_quit(&f->loop);
	pthread_join(loop, NULL);
	close(fd);
}

static void test_host_gone_before_its_event(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct vsock_hdr h;

	fake_start(f);
	close(fake_connect(f, &c, 1));
	/* The guest sends before the loop has seen that nobody is there. */
	assert_true(fake_tx(f, &c, VSOCK_OP_RW, 0, "lost", 4));
	fake_expect(f, &h, VSOCK_OP_SHUTDOWN);
	assert_int_equal(h.flags, VSOCK_SHUT_RCV);
	assert_int_equal(h.fwd_cnt, 0); /* four bytes that did not get anywhere */
	fake_turns(f);
	fake_expect(f, &h, VSOCK_OP_SHUTDOWN);
	assert_int_equal(h.flags, VSOCK_SHUT_BOTH);
	assert_int_equal(f->report[1], FAKE_CLOSED);
}

/* Out of descriptors, or handed something that is none: an error, and nothing is left behind. */
static void test_no_descriptors(void **state)
{
	struct fake *f = *state;
	const struct vsock_events none = {0};
	struct rlimit old, low;
	struct vsock *v = malloc(sizeof(*v));
	int before, after;

	assert_int_equal(vsock_connect(&f->v, 1, -1, 1), -EBADF);
	assert_int_equal(vsock_connect(&f->v, 1, 1 << 20, 2), -EBADF);
	assert_int_equal(vsock_streams(&f->v), 0);
	before = dup(0);
	close(before);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	for (rlim_t n = (rlim_t)before; n < (rlim_t)before + 3; n++) {
		int rc;

		low = (struct rlimit){.rlim_cur = n, .rlim_max = old.rlim_max};
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
		rc = vsock_init(v, &f->mem, &f->dev->host, &none);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
		assert_int_equal(rc, n < (rlim_t)before + 2 ? -EMFILE : 0);
		if (rc == 0)
			vsock_free(v);
		after = dup(0);
		assert_int_equal(after, before);
		close(after);
	}
	free(v);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fake_setup, fake_teardown)
	const struct CMUnitTest tests[] = {
		T(test_talk),
		T(test_refused_by_guest),
		T(test_connect_before_driver),
		T(test_withdrawn_request),
		T(test_bulk_to_host),
		T(test_bulk_to_guest),
		T(test_many_streams),
		T(test_guest_half_close),
		T(test_host_half_close),
		T(test_host_closes_with_data_on_the_way),
		T(test_guest_reset_delivers_first),
		T(test_guest_stops_receiving),
		T(test_pool),
		T(test_port_counter_wraps),
		T(test_device_reset),
		T(test_interrupts_and_events),
		T(test_three_threads),
		T(test_host_gone_before_its_event),
		T(test_no_descriptors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
