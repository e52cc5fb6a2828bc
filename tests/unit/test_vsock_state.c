/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock device saved, loaded from hostile bytes, and forked by a real fork(2).
 */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_driver.h"
#include "lib/io.h"
#include "proto/guest.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* A second device over a copy of the RAM. */
static struct fake *copy_of(const struct fake *f)
{
	struct fake *f2 = malloc(sizeof(*f2));

	fake_init(f2);
	memcpy(f2->mem.base, f->mem.base, FAKE_RAM);
	memcpy(f2->q, f->q, sizeof(f->q));
	f2->layout = f->layout;
	f2->tx_next = f->tx_next;
	return f2;
}

static void test_save_load(void **state)
{
	static uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	struct fake *f = *state, *f2;
	struct fake_conn c[3] = {0}, fresh = {0};
	struct vsock_hdr h;
	uint32_t seen = 0;
	int fd[3], fd2, len;

	fake_start(f);
	for (uint32_t i = 0; i < 3; i++) {
		c[i].guest_port = 50 + i;
		fd[i] = fake_connect(f, &c[i], i);
	}
	assert_true(fake_tx(f, &c[2], VSOCK_OP_RST, 0, NULL, 0)); /* one is gone */
	len = virtio_dev_save(f->dev, a, sizeof(a));
	assert_true(len > 0);
	f2 = copy_of(f);
	assert_int_equal(virtio_dev_load(f2->dev, a, (size_t)len), 0);
	assert_int_equal(virtio_dev_save(f2->dev, b, sizeof(b)), len);
	assert_memory_equal(a, b, (size_t)len);
	/* The original is untouched. */
	assert_true(fake_tx(f, &c[0], VSOCK_OP_RW, 0, "x", 1));
	assert_int_equal(f->report[0], FAKE_CONNECTED);
	/* In the copy the guest hears that both streams are over. */
	virtio_dev_resume(f2->dev);
	assert_true(f2->irqs > 0);
	for (int i = 0; i < 2; i++) {
		fake_expect(f2, &h, VSOCK_OP_RST);
		seen |= 1u << (h.dst_port - 50);
		assert_int_equal(h.src_port, c[h.dst_port - 50].host_port);
	}
	assert_int_equal(seen, 3);
	fake_assert_no_packet(f2);
	/* Ports go on where they were. */
	fd2 = fake_connect(f2, &fresh, 5);
	assert_int_equal(fresh.host_port, c[2].host_port + 1);
	close(fd2);
	fake_free(f2);
	free(f2);
	for (int i = 0; i < 3; i++)
		close(fd[i]);
}

/* States that are cut short, or with any byte of the device's own part changed. */
static void test_load_hostile(void **state)
{
	static uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	struct fake *f = *state, *f2;
	struct fake_conn c = {0};
	size_t own = 37 + 3 * 31; /* bytes before it */
	int fd, len, loaded = 0;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	len = virtio_dev_save(f->dev, a, sizeof(a));
	assert_int_equal(len, own + 6 + 16);
	f2 = copy_of(f);
	for (size_t cut = 0; cut < (size_t)len; cut++) {
		assert_int_equal(virtio_dev_load(f2->dev, a, cut), -EPROTO);
		assert_int_equal(f2->v.rst_len, 0);
		assert_int_equal(fake_read(f2, VIRTIO_MMIO_STATUS), 0);
	}
	for (size_t i = own; i < (size_t)len; i++)
		for (unsigned v = 0; v < 256; v++) {
			uint8_t keep = a[i];

			a[i] = (uint8_t)v;
			if (virtio_dev_load(f2->dev, a, (size_t)len) == 0) {
				assert_int_equal(virtio_dev_save(f2->dev, b, sizeof(b)), len);
				assert_memory_equal(a, b, (size_t)len);
				virtio_dev_resume(f2->dev);
				loaded++;
			}
			fake_write(f2, VIRTIO_MMIO_STATUS, 0);
			assert_int_equal(f2->v.rst_len, 0);
			a[i] = keep;
		}
	assert_in_range(loaded, 16 * 256, 20 * 256); /* ports and cid; not the count */
	fake_free(f2);
	free(f2);
	close(fd);
}

#define IN_CHILD(cond)                                                            \
	do {                                                                      \
		if (!(cond)) {                                                    \
			fprintf(stderr, "child: line %d: %s\n", __LINE__, #cond); \
			_exit(1);                                                 \
		}                                                                 \
	} while (0)

/* What the forked child does and sees. */
static void child(struct fake *f, const struct fake_conn *c, unsigned reports)
{
	struct fake_conn fresh = {.guest_port = 70, .buf_alloc = 1 << 18};
	struct vsock_hdr h;
	const struct vsock_conn *busy = &f->v.conn[c[2].host_port % VSOCK_CONNS];
	unsigned seen = 0, now = 0;
	int fd;

	f->src.loop = NULL;
	/* What waited in the ring for the parent's client was wiped by the kernel. */
	IN_CHILD(vsock_conn_pending(busy) > 0);
	IN_CHILD(busy->ring[busy->fwd_cnt % VSOCK_BUF_ALLOC] == 0);
	IN_CHILD(virtio_dev_fork_child(f->dev) == 0);
	virtio_dev_resume(f->dev);
	IN_CHILD(loop_fork_child(&f->loop) == 0);
	f->src = (struct loop_src){.fn = f->src.fn, .arg = f};
	IN_CHILD(loop_add(&f->loop, &f->src, vsock_event_fd(&f->v), EPOLLIN) == 0);
	IN_CHILD(vsock_streams(&f->v) == 0);
	for (unsigned i = 0; i < FAKE_COOKIES; i++)
		now += f->connects[i] + f->ends[i];
	IN_CHILD(now == reports); /* no reports to the parent's owner */
	while (fake_rx(f, &h, NULL, true)) {
		IN_CHILD(h.op == VSOCK_OP_RST && h.dst_port >= 50 && h.dst_port < 54);
		IN_CHILD(h.src_port == c[h.dst_port - 50].host_port);
		IN_CHILD(!(seen & 1u << (h.dst_port - 50)));
		seen |= 1u << (h.dst_port - 50);
	}
	IN_CHILD(seen == 0xf);
	/* A late packet of an old stream is refused; a new stream works, on a port of its own. */
	IN_CHILD(fake_tx(f, &c[0], VSOCK_OP_RW, 0, "ghost", 5));
	IN_CHILD(fake_rx(f, &h, NULL, true) && h.op == VSOCK_OP_RST);
	fd = fake_connect(f, &fresh, 9);
	for (unsigned i = 0; i < 4; i++)
		IN_CHILD(fresh.host_port != c[i].host_port);
	IN_CHILD(io_write_some(fd, "hello", 5) == 5);
	fake_turns(f);
	IN_CHILD(fake_rx(f, &h, NULL, true) && h.op == VSOCK_OP_RW && h.len == 5);
	_exit(0);
}

static void test_fork(void **state)
{
	static uint8_t data[VSOCK_PACKET_MAX];
	struct fake *f = *state;
	struct fake_conn c[4] = {0};
	struct vsock_hdr h;
	unsigned reports = 0;
	int fd[4], status;
	size_t sum = 0;
	pid_t pid;

	fake_start(f);
	for (uint32_t i = 0; i < 4; i++) {
		c[i].guest_port = 50 + i;
		c[i].buf_alloc = 1 << 18;
		if (i < 3) {
			fd[i] = fake_connect(f, &c[i], i);
		} else {
			fd[i] = fake_connect_start(f, 53, i);
			fake_expect(f, &h, VSOCK_OP_REQUEST);
			c[i].host_port = h.src_port;
		}
	}
	/* Bytes wait in the ring of one, in the socket of another. */
	memset(data, 0x55, sizeof(data));
	for (int i = 0; i < 4; i++)
		assert_true(fake_tx(f, &c[2], VSOCK_OP_RW, 0, data, sizeof(data)));
	assert_true(vsock_conn_pending(&f->v.conn[c[2].host_port % VSOCK_CONNS]) > 0);
	while (fake_rx(f, &h, NULL, true))
		;
	assert_int_equal(io_write_some(fd[1], "kept", 4), 4);
	for (unsigned i = 0; i < FAKE_COOKIES; i++)
		reports += f->connects[i] + f->ends[i];
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		for (int i = 0; i < 4; i++)
			close(fd[i]); /* the test's own ends */
		child(f, c, reports);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);

	/* The parent's streams have not noticed. */
	fake_turns(f);
	assert_true(fake_rx(f, &h, data, true));
	assert_int_equal(h.op, VSOCK_OP_RW);
	assert_memory_equal(data, "kept", 4);
	assert_true(fake_tx(f, &c[0], VSOCK_OP_RW, 0, "on", 2));
	assert_int_equal(io_read_some(fd[0], data, 10), 2);
	for (int i = 0; i < 20 && sum < 4 * sizeof(data); i++) {
		ssize_t n;

		while ((n = io_read_some(fd[2], data, sizeof(data))) > 0) {
			for (ssize_t k = 0; k < n; k++)
				assert_int_equal(data[k], 0x55);
			sum += (size_t)n;
		}
		fake_turns(f);
	}
	assert_int_equal(sum, 4 * sizeof(data));
	assert_true(fake_tx(f, &c[3], VSOCK_OP_RESPONSE, 0, NULL, 0));
	assert_int_equal(f->report[3], FAKE_CONNECTED);
	for (int i = 0; i < 4; i++)
		close(fd[i]);
}

/* Connections of the guest's: one open, one asked about, one that nobody knows of yet. */
static int guest_opens(struct fake *f, struct fake_conn c[3], uint32_t *id)
{
	struct vsock_hdr h;
	int sv[2];

	for (uint32_t i = 0; i < 3; i++) {
		c[i] = (struct fake_conn){
			.guest_port = 50 + i, .host_port = GUEST_EGRESS_PORT, .buf_alloc = 1 << 18};
		assert_true(fake_tx(f, &c[i], VSOCK_OP_REQUEST, 0, NULL, 0));
		if (i < 2)
			*id = vsock_next_asked(&f->v);
		assert_int_not_equal(*id, 0);
		if (i)
			continue;
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		assert_int_equal(io_set_nonblock(sv[0], 1), 0);
		assert_int_equal(vsock_accept(&f->v, *id, sv[1]), 0);
		fake_expect(f, &h, VSOCK_OP_RESPONSE);
	}
	assert_int_equal(vsock_streams(&f->v), 3);
	return sv[0];
}

static void test_save_load_of_the_guests(void **state)
{
	static uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	struct fake *f = *state, *f2;
	struct fake_conn c[3], gone = {.guest_port = 60, .host_port = GUEST_EGRESS_PORT};
	uint32_t id, other;
	struct vsock_hdr h;
	unsigned seen = 0;
	int fd, len;

	vsock_set_egress(&f->v, true);
	fake_start(f);
	/* One that the guest has given up is nothing to be saved. */
	assert_true(fake_tx(f, &gone, VSOCK_OP_REQUEST, 0, NULL, 0));
	other = vsock_next_asked(&f->v);
	assert_true(fake_tx(f, &gone, VSOCK_OP_RST, 0, NULL, 0));
	assert_int_equal(vsock_streams(&f->v), 1);
	vsock_reject(&f->v, other);
	fd = guest_opens(f, c, &id);
	assert_true(fake_tx(f, &gone, VSOCK_OP_REQUEST, 0, NULL, 0));
	assert_int_not_equal(vsock_next_asked(&f->v), 0);
	assert_int_not_equal(vsock_next_asked(&f->v), 0);
	assert_true(fake_tx(f, &gone, VSOCK_OP_RST, 0, NULL, 0));
	len = virtio_dev_save(f->dev, a, sizeof(a));
	assert_true(len > 0);
	f2 = copy_of(f);
	assert_int_equal(virtio_dev_load(f2->dev, a, (size_t)len), 0);
	assert_int_equal(virtio_dev_save(f2->dev, b, sizeof(b)), len);
	assert_memory_equal(a, b, (size_t)len);
	virtio_dev_resume(f2->dev);
	while (fake_rx(f2, &h, NULL, true)) {
		assert_int_equal(h.op, VSOCK_OP_RST);
		assert_int_equal(h.src_port, GUEST_EGRESS_PORT);
		assert_in_range(h.dst_port, 50, 52);
		assert_false(seen & 1u << (h.dst_port - 50));
		seen |= 1u << (h.dst_port - 50);
	}
	assert_int_equal(seen, 7);
	/* Off, whatever it was. */
	assert_int_equal(vsock_streams(&f2->v), 0);
	assert_true(fake_tx(f2, &c[0], VSOCK_OP_REQUEST, 0, NULL, 0));
	fake_expect(f2, &h, VSOCK_OP_RST);
	assert_int_equal(f2->asks, 0);
	fake_free(f2);
	free(f2);
	close(fd);
}

static void child_of_the_guests(struct fake *f, const struct fake_conn *c, uint32_t id)
{
	struct vsock_hdr h;
	unsigned seen = 0, asks = f->asks;

	IN_CHILD(virtio_dev_fork_child(f->dev) == 0);
	virtio_dev_resume(f->dev);
	IN_CHILD(vsock_streams(&f->v) == 0);
	while (fake_rx(f, &h, NULL, true)) {
		IN_CHILD(h.op == VSOCK_OP_RST && h.src_port == GUEST_EGRESS_PORT);
		IN_CHILD(h.dst_port >= 50 && h.dst_port < 53 && !(seen >> (h.dst_port - 50) & 1));
		seen |= 1u << (h.dst_port - 50);
	}
	IN_CHILD(seen == 7);
	/* Off: nothing is asked, old ids are nobody's. */
	IN_CHILD(fake_tx(f, &c[0], VSOCK_OP_REQUEST, 0, NULL, 0));
	IN_CHILD(fake_rx(f, &h, NULL, true) && h.op == VSOCK_OP_RST);
	IN_CHILD(f->asks == asks && vsock_next_asked(&f->v) == 0);
	IN_CHILD(vsock_accept(&f->v, id, -1) == -ENOENT);
	/* Until it is granted again. */
	vsock_set_egress(&f->v, true);
	IN_CHILD(fake_tx(f, &c[0], VSOCK_OP_REQUEST, 0, NULL, 0));
	IN_CHILD(f->asks == asks + 1 && vsock_next_asked(&f->v) != 0);
	_exit(0);
}

static void test_fork_of_the_guests(void **state)
{
	struct fake *f = *state;
	struct fake_conn c[3];
	struct vsock_hdr h;
	uint32_t id;
	int fd, status;
	char byte;
	pid_t pid;

	vsock_set_egress(&f->v, true);
	fake_start(f);
	fd = guest_opens(f, c, &id);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		close(fd);
		child_of_the_guests(f, c, id);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	/* The parent's go on, questions too. */
	fake_assert_no_packet(f);
	assert_true(fake_tx(f, &c[0], VSOCK_OP_RW, 0, "x", 1));
	assert_int_equal(io_read_some(fd, &byte, 1), 1);
	vsock_reject(&f->v, id);
	fake_expect(f, &h, VSOCK_OP_RST);
	assert_int_equal(h.dst_port, 51);
	assert_int_not_equal(vsock_next_asked(&f->v), 0);
	close(fd);
}

/* A process that was just forked still holds copies: the host sees EOF all the same. */
static void test_eof_despite_copies(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {0};
	struct vsock_hdr h;
	int fd, copy, next;

	fake_start(f);
	fd = fake_connect(f, &c, 1);
	copy = dup(f->v.conn[c.host_port % VSOCK_CONNS].fd);
	assert_true(fake_tx(f, &c, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH, NULL, 0));
	fake_assert_eof(fd);
	fake_expect(f, &h, VSOCK_OP_RST);
	/* What happens to the copy is no event for the next connection in the slot. */
	f->v.next_port = c.host_port + VSOCK_CONNS;
	next = fake_connect_start(f, 9, 2);
	close(fd);
	fake_assert_quiet(f);
	assert_int_equal(f->report[2], FAKE_NONE);
	close(copy);
	close(next);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fake_setup, fake_teardown)
	const struct CMUnitTest tests[] = {
		T(test_save_load),
		T(test_load_hostile),
		T(test_fork),
		T(test_save_load_of_the_guests),
		T(test_fork_of_the_guests),
		T(test_eof_despite_copies),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
