/* SPDX-License-Identifier: Apache-2.0 */
/* See fake_guest.h. */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_guest.h"
#include "lib/io.h"
#include "proto/guest.h"
#include "vmm/virtio/virtio_spec.h"

#include <string.h>
#include <sys/socket.h>

struct fake_conn fake_guest_end(uint32_t port)
{
	return (struct fake_conn){
		.guest_port = port,
		.host_port = GUEST_EGRESS_PORT,
		.buf_alloc = 256u << 10,
	};
}

void fake_guest_sends(struct fake *f, const struct fake_conn *c, enum vsock_op op)
{
	assert_true(fake_tx(f, c, op, 0, NULL, 0));
}

uint32_t fake_guest_asks(struct fake *f, const struct fake_conn *c)
{
	unsigned asks = f->asks;
	uint32_t id;

	fake_guest_sends(f, c, VSOCK_OP_REQUEST);
	assert_true(f->asks > asks);
	fake_assert_no_packet(f);
	id = vsock_next_asked(&f->v);
	assert_int_not_equal(id, 0);
	return id;
}

int fake_answer(struct fake *f, uint32_t id, int expected)
{
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(io_set_nonblock(sv[0], 1), 0);
	assert_int_equal(vsock_accept(&f->v, id, sv[1]), expected);
	return sv[0];
}

void fake_expect_rst(struct fake *f, const struct fake_conn *c)
{
	struct vsock_hdr h;

	fake_expect(f, &h, VSOCK_OP_RST);
	assert_int_equal(h.src_cid, VSOCK_CID_HOST);
	assert_int_equal(h.src_port, c->host_port);
	assert_int_equal(h.dst_port, c->guest_port);
}

int fake_guest_opens(struct fake *f, struct fake_conn *c)
{
	int fd = fake_answer(f, fake_guest_asks(f, c), 0);
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

void fake_talk(struct fake *f, const struct fake_conn *c, int fd)
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

int fake_setup_on(void **state)
{
	struct fake *f;

	fake_setup(state);
	f = *state;
	vsock_set_egress(&f->v, true);
	fake_start(f);
	return 0;
}
