/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that the guest opens: the switch, questions and answers, streams.
 * Limits and hostile guests: test_vsock_guest_limits.c; saved and forked:
 * test_vsock_state.c.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_guest.h"
#include "lib/io.h"
#include "proto/guest.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static void test_off_at_first(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(1024);
	int fd;

	fake_start(f);
	fake_guest_sends(f, &c, VSOCK_OP_REQUEST);
	fake_expect_rst(f, &c);
	assert_int_equal(f->asks, 0);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	assert_int_equal(vsock_streams(&f->v), 0);
	assert_int_equal(f->v.bad_packets, 0);
	vsock_set_egress(&f->v, true);
	fd = fake_guest_opens(f, &c);
	fake_talk(f, &c, fd);
	vsock_set_egress(&f->v, false);
	fake_expect_rst(f, &c);
	fake_guest_sends(f, &c, VSOCK_OP_REQUEST);
	fake_expect_rst(f, &c);
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
		struct fake_conn c = fake_guest_end(3000);
		struct vsock_hdr h;
		int fd;

		fake_start(f);
		fd = fake_guest_opens(f, &c);
		for (int i = 0; i < 100; i++)
			fake_talk(f, &c, fd);
		assert_int_equal(vsock_streams(&f->v), 1);
		if (f->layout == FAKE_RX_SPLIT) { /* the guest closes */
			assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH, NULL, 0));
			fake_assert_eof(fd);
			fake_expect_rst(f, &c);
			close(fd);
		} else { /* the host does */
			close(fd);
			fake_turns(f);
			do
				fake_expect(f, &h, VSOCK_OP_SHUTDOWN);
			while (h.flags != VSOCK_SHUT_BOTH);
			fake_guest_sends(f, &c, VSOCK_OP_RST);
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
	struct fake_conn c = fake_guest_end(3000);
	uint64_t sent = 0, received = 0;
	uint8_t data[FAKE_RX_BUF];
	struct vsock_hdr h;
	unsigned blocked = 0;
	int fd;

	c.buf_alloc = 10000;
	fd = fake_guest_opens(f, &c);
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
	fake_guest_sends(f, &c, VSOCK_OP_CREDIT_UPDATE);
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
	fake_expect_rst(f, &c);
	assert_int_equal(vsock_streams(&f->v), 0);
	close(fd);
}

static void test_reject(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(1024);
	uint32_t id = fake_guest_asks(f, &c);

	vsock_reject(&f->v, id);
	fake_expect_rst(f, &c);
	fake_assert_no_packet(f);
	assert_int_equal(vsock_streams(&f->v), 0);
	/* It may ask again, and the old answer is none to that. */
	assert_int_not_equal(fake_guest_asks(f, &c), id);
	vsock_reject(&f->v, id);
	fake_assert_no_packet(f);
	assert_int_equal(vsock_streams(&f->v), 1);
}

/* Given up before the owner has taken it: it never hears of it. */
static void test_given_up_at_once(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(1024);

	fake_guest_sends(f, &c, VSOCK_OP_REQUEST);
	fake_guest_sends(f, &c, VSOCK_OP_RST);
	assert_int_equal(vsock_next_asked(&f->v), 0);
	assert_int_equal(vsock_streams(&f->v), 0);
	fake_assert_no_packet(f);
}

/* What the host sends before the guest can be told is kept; and so is its end. */
static void test_host_is_quick(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = fake_guest_end(1024);
	uint8_t data[FAKE_RX_BUF];
	struct vsock_hdr h;
	int fd;

	fake_negotiate(f);
	for (unsigned q = 0; q < VSOCK_QUEUES; q++)
		fake_setup_queue(f, q, FAKE_QUEUE);
	fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
	fake_guest_sends(f, &c, VSOCK_OP_REQUEST);
	fd = fake_answer(f, vsock_next_asked(&f->v), 0);
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
	fake_guest_sends(f, &c, VSOCK_OP_RST);
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
		c[i] = fake_guest_end(100 + i);
	fd[0] = fake_guest_opens(f, &c[0]);
	fd[1] = fake_guest_opens(f, &c[1]);
	id = fake_guest_asks(f, &c[2]);
	fake_guest_sends(f, &c[3], VSOCK_OP_REQUEST); /* not handed out yet */
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
	late = fake_answer(f, id, -ENOENT);
	fake_assert_eof(late);
	vsock_reject(&f->v, id);
	/* What the guest still sends is refused. */
	assert_true(fake_tx(f, &c[0], VSOCK_OP_RW, 0, "x", 1));
	fake_expect_rst(f, &c[0]);
	assert_true(fake_tx(f, &own, VSOCK_OP_RW, 0, "y", 1));
	assert_int_equal(io_read_some(host, &byte, 1), 1);
	vsock_set_egress(&f->v, false); /* twice is once */
	fake_assert_no_packet(f);
	/* On again: other questions. */
	vsock_set_egress(&f->v, true);
	assert_int_not_equal(fake_guest_asks(f, &c[2]), id);
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
	struct fake_conn c = fake_guest_end(1), d = fake_guest_end(2), e = fake_guest_end(3);
	int fd = fake_guest_opens(f, &c);
	uint32_t id = fake_guest_asks(f, &d);

	fake_guest_sends(f, &e, VSOCK_OP_REQUEST);
	fake_write(f, VIRTIO_MMIO_STATUS, 0);
	fake_assert_eof(fd);
	assert_int_equal(vsock_streams(&f->v), 1); /* the question that is out */
	assert_int_equal(vsock_next_asked(&f->v), 0);
	fake_start(f);
	fake_assert_no_packet(f);
	close(fake_answer(f, id, -ENOENT));
	assert_int_equal(vsock_streams(&f->v), 0);
	fake_assert_no_packet(f);
	close(fd);
	fd = fake_guest_opens(f, &d);
	fake_talk(f, &d, fd);
	close(fd);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fake_setup_on, fake_teardown)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_off_at_first, fake_setup, fake_teardown),
		T(test_only_that_port),
		T(test_stream),
		T(test_credit),
		T(test_reject),
		T(test_given_up_at_once),
		T(test_host_is_quick),
		T(test_switched_off),
		T(test_driver_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
