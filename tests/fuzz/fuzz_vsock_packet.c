/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packet headers and one connection. The input is a list of steps: packets
 * with any header, what the host does to its end of the socket, packets taken
 * for the guest. A model beside it counts bytes; every byte that comes out on
 * either side must be the one that went in, in order, although the guest's memory
 * changes as soon as a byte was taken from it.
 */
#define _GNU_SOURCE
#include "input.h"

#include "lib/io.h"
#include "vmm/virtio/vsock_conn.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

/* Stream byte number i is table[i % PERIOD]; a prime, so that no power of two hides a shift. */
#define PERIOD 65521u

static uint8_t table[PERIOD + VSOCK_PACKET_MAX];

static void make_table(void)
{
	for (uint32_t i = 0; i < sizeof(table); i++)
		table[i] = (uint8_t)((i % PERIOD * 2654435761u) >> 13);
}

static const uint8_t *stream_at(uint64_t i)
{
	return table + i % PERIOD;
}

static void check_header(const uint8_t raw[VSOCK_HDR_BYTES], struct vsock_hdr *h)
{
	uint8_t back[VSOCK_HDR_BYTES];
	uint32_t room = h->buf_alloc;
	enum vsock_verdict v;

	vsock_hdr_unpack(raw, h);
	vsock_hdr_pack(back, h);
	MUST(memcmp(raw, back, VSOCK_HDR_BYTES) == 0);
	room = h->fwd_cnt;
	v = vsock_hdr_check(h, 3, room);
	if (v == VSOCK_ACCEPT)
		MUST(h->src_cid == 3 && h->dst_cid == 2 && h->type == 1 && h->op >= 1 &&
		     h->op <= 7 && h->len <= room && h->len <= VSOCK_PACKET_MAX);
	if (v == VSOCK_REFUSE)
		MUST(h->op != VSOCK_OP_RST && h->src_cid == 3);
}

struct model {
	struct vsock_conn c;
	int host;           /* the host's end, -1 when closed */
	uint64_t to_host;   /* bytes accepted from the guest */
	uint64_t host_got;  /* bytes the host has read */
	uint64_t host_sent; /* bytes the host has written */
	uint64_t guest_got; /* bytes delivered to the guest */
	bool eof_sent, host_eof;
};

static uint8_t guest[VSOCK_PACKET_MAX]; /* memory of a packet from the guest */

ssize_t __real_io_send_some(int fd, const void *p, size_t len);
ssize_t __wrap_io_send_some(int fd, const void *p, size_t len);

ssize_t __wrap_io_send_some(int fd, const void *p, size_t len)
{
	ssize_t n = __real_io_send_some(fd, p, len);
	size_t off = (size_t)((const uint8_t *)p - guest);

	if (n > 0 && (const uint8_t *)p >= guest && off < sizeof(guest))
		memset(guest + off, 0xff, (size_t)n);
	return n;
}

static void from_guest(struct model *m, uint32_t len)
{
	uint32_t window = VSOCK_BUF_ALLOC - (m->c.rx_cnt - m->c.told_fwd);
	bool shut = m->c.guest_shut & VSOCK_SHUT_SEND;
	struct iovec iov[3];
	uint32_t cut = len / 3;
	int rc;

	memcpy(guest, stream_at(m->to_host), len);
	iov[0] = (struct iovec){guest, cut};
	iov[1] = (struct iovec){guest + cut, cut};
	iov[2] = (struct iovec){guest + 2 * cut, len - 2 * cut};
	rc = vsock_conn_receive(&m->c, iov, 3, len);
	MUST((rc == 0) == (len <= window && !shut));
	if (rc == 0)
		m->to_host += len;
}

static void to_guest(struct model *m, uint32_t room)
{
	static uint8_t data[VSOCK_PACKET_MAX];
	uint32_t may = vsock_conn_sendable(&m->c);
	uint32_t credit = m->c.peer_alloc - (m->c.tx_cnt - m->c.peer_fwd);
	struct iovec iov = {data, may < room ? may : room};
	struct vsock_hdr h;

	if (!vsock_conn_wants(&m->c) || !vsock_conn_next(&m->c, &h, &iov, iov.iov_len > 0))
		return;
	MUST(h.fwd_cnt == m->c.fwd_cnt && m->c.told_fwd == m->c.fwd_cnt);
	if (h.op == VSOCK_OP_RW) {
		MUST(h.len && h.len <= room && h.len <= credit && !m->eof_sent);
		MUST(memcmp(data, stream_at(m->guest_got), h.len) == 0);
		m->guest_got += h.len;
	}
	if (h.op == VSOCK_OP_SHUTDOWN && (h.flags & VSOCK_SHUT_SEND)) {
		m->eof_sent = true;
		/* Everything that the host wrote has arrived, unless the guest wanted no more. */
		if (!(m->c.guest_shut & VSOCK_SHUT_RCV))
			MUST(m->guest_got == m->host_sent);
	}
}

static void host_reads(struct model *m, size_t len)
{
	static uint8_t data[VSOCK_PACKET_MAX];
	ssize_t n = m->host < 0 ? -EBADF : io_read_some(m->host, data, len);

	if (n > 0)
		MUST(memcmp(data, stream_at(m->host_got), (size_t)n) == 0);
	if (n > 0)
		m->host_got += (uint64_t)n;
	if (n == 0 && len && !m->host_eof) {
		m->host_eof = true;
		MUST(m->host_got == m->to_host);
	}
}

static void host_writes(struct model *m, size_t len)
{
	ssize_t n = m->host < 0 ? 0 : io_send_some(m->host, stream_at(m->host_sent), len);

	if (n > 0)
		m->host_sent += (uint64_t)n;
}

/* What epoll would report. */
static void events(struct model *m)
{
	struct pollfd p = {.fd = m->c.fd, .events = POLLIN | POLLOUT};

	if (m->c.fd >= 0 && poll(&p, 1, 0) > 0)
		vsock_conn_fd_event(&m->c, (uint32_t)p.revents);
}

static bool step(struct model *m, struct input *in)
{
	uint8_t op = input_u8(in);
	struct vsock_hdr h = {0};

	switch (op % 9) {
	case 0:
		from_guest(m, (uint32_t)input_int(in, 2) % (VSOCK_PACKET_MAX + 1));
		break;
	case 1:
		to_guest(m, 1 + (uint32_t)input_int(in, 2));
		break;
	case 2:
		host_reads(m, (size_t)input_int(in, 2));
		break;
	case 3:
		host_writes(m, (size_t)input_int(in, 2));
		break;
	case 4:
		events(m);
		break;
	case 5:
		h.buf_alloc = (uint32_t)input_int(in, 3);
		h.fwd_cnt = (op & 0x80) ? (uint32_t)input_int(in, 4) : (uint32_t)m->guest_got;
		vsock_conn_credit(&m->c, &h);
		break;
	case 6:
		vsock_conn_guest_shutdown(&m->c, input_u8(in));
		break;
	case 7:
		if (m->host >= 0 && (op & 0x80)) {
			close_fd(&m->host);
			m->host_eof = true;
		} else if (m->host >= 0) {
			shutdown(m->host, SHUT_WR);
		}
		break;
	case 8:
		m->c.credit_due = true;
		m->c.guest_gone = m->c.guest_gone || (op & 0x80);
		break;
	}
	MUST(m->c.fwd_cnt - m->c.told_fwd <= VSOCK_BUF_ALLOC);
	MUST(m->c.rx_cnt - m->c.told_fwd <= VSOCK_BUF_ALLOC);
	MUST(vsock_conn_pending(&m->c) <= VSOCK_BUF_ALLOC);
	MUST(m->c.tx_cnt == (uint32_t)m->guest_got && m->guest_got <= m->host_sent);
	switch (vsock_conn_review(&m->c)) {
	case VSOCK_LIVES:
		return true;
	case VSOCK_DETACH:
		close_fd(&m->c.fd);
		return true;
	default:
		return false;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t *ring;
	struct input in = {data, size};
	uint8_t raw[VSOCK_HDR_BYTES];
	struct model m = {.host = -1};
	struct vsock_hdr h = {0};
	int sv[2];

	input_bytes(&in, raw, sizeof(raw));
	check_header(raw, &h);
	if (!ring) {
		make_table();
		ring = mmap(NULL, VSOCK_BUF_ALLOC, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	}
	MUST(ring != MAP_FAILED);
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
	m.host = sv[1];
	m.c.ring = ring;
	if (h.flags & 1) { /* opened by the guest */
		vsock_conn_ask(&m.c, &h, 1);
		MUST(vsock_conn_review(&m.c) == VSOCK_LIVES && !vsock_conn_wants(&m.c));
		vsock_conn_accept(&m.c, sv[0]);
		MUST(vsock_conn_wants(&m.c));
	} else {
		vsock_conn_open(&m.c, sv[0], 1, 1u << 30, 5555);
	}
	/* Counters that are about to wrap are part of the game. */
	m.c.rx_cnt = m.c.fwd_cnt = m.c.told_fwd = h.len;
	to_guest(&m, 1000);
	MUST(!m.c.response_due);
	m.c.state = VSOCK_CONN_OPEN;
	vsock_conn_credit(&m.c, &(struct vsock_hdr){.buf_alloc = h.buf_alloc});
	while (in.left && step(&m, &in))
		;
	vsock_conn_close(&m.c);
	close_fd(&m.host);
	return 0;
}
