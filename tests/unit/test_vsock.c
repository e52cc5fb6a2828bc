/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock device against a fake guest driver, real socketpairs and the real event
 * loop: streams, how they begin, and how many there may be. How they end:
 * test_vsock_ends.c; much data: test_vsock_bulk.c.
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
		T(test_pool),
		T(test_port_counter_wraps),
		T(test_interrupts_and_events),
		T(test_no_descriptors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
