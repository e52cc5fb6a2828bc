/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock device: much data, over one stream each way, over many, and between
 * three threads.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_driver.h"
#include "lib/io.h"
#include "vmm/virtio/virtio_spec.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

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

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fake_setup, fake_teardown)
	const struct CMUnitTest tests[] = {
		T(test_bulk_to_host),
		T(test_bulk_to_guest),
		T(test_many_streams),
		T(test_three_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
