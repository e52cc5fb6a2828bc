/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock device: how streams end. By halves, with data on the way, by resets of
 * the guest and of the device, with a host that is gone.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_driver.h"
#include "lib/io.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

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

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fake_setup, fake_teardown)
	const struct CMUnitTest tests[] = {
		T(test_guest_half_close),
		T(test_host_half_close),
		T(test_host_closes_with_data_on_the_way),
		T(test_guest_reset_delivers_first),
		T(test_guest_stops_receiving),
		T(test_device_reset),
		T(test_host_gone_before_its_event),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
