/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two byte streams of one connection with their credit, half-close and
 * hang-up. Everything delivered in order: EOF of the guest reaches the socket
 * after the last byte of the ring, EOF of the socket reaches the guest after
 * the last byte read.
 *
 * Thread: under the device lock; nothing blocks. Fork: see vsock.h.
 */
#define _GNU_SOURCE
#include "vmm/virtio/vsock_conn.h"

#include "lib/io.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

/* The guest is told of freed buffer when this much has gathered: it never stops at a full window.
 */
#define CREDIT_STEP (VSOCK_BUF_ALLOC / 4)

/*
 * One call a piece, and never sendmsg(2) or recvmsg(2): these can pass descriptors on, and the jail
 * of vCPU threads has neither. Count of bytes, which may be fewer, or -errno if there are none.
 */
static ssize_t transfer(ssize_t (*call)(int fd, void *p, size_t len), int fd,
			const struct iovec *iov, int n)
{
	ssize_t sum = 0;

	for (int i = 0; i < n; i++) {
		ssize_t r = call(fd, iov[i].iov_base, iov[i].iov_len);

		if (r < 0)
			return sum ? sum : r;
		sum += r;
		if ((size_t)r < iov[i].iov_len)
			break;
	}
	return sum;
}

static ssize_t send_piece(int fd, void *p, size_t len)
{
	return io_send_some(fd, p, len);
}

void vsock_conn_open(struct vsock_conn *c, int fd, uint32_t cookie, uint32_t host_port,
		     uint32_t guest_port)
{
	*c = (struct vsock_conn){
		.state = VSOCK_CONN_WAIT,
		.fd = fd,
		.cookie = cookie,
		.host_port = host_port,
		.guest_port = guest_port,
		.ring = c->ring,
	};
}

void vsock_conn_ask(struct vsock_conn *c, const struct vsock_hdr *request, uint32_t cookie)
{
	*c = (struct vsock_conn){
		.state = VSOCK_CONN_ASKED,
		.fd = -1,
		.cookie = cookie,
		.host_port = request->dst_port,
		.guest_port = request->src_port,
		.ring = c->ring,
	};
	vsock_conn_credit(c, request);
}

void vsock_conn_accept(struct vsock_conn *c, int fd)
{
	c->state = VSOCK_CONN_OPEN;
	c->fd = fd;
	c->response_due = true;
}

void vsock_conn_close(struct vsock_conn *c)
{
	close_fd(&c->fd);
	if (c->ring_used)
		madvise(c->ring, VSOCK_BUF_ALLOC, MADV_DONTNEED);
	*c = (struct vsock_conn){.fd = -1, .ring = c->ring};
}

void vsock_conn_credit(struct vsock_conn *c, const struct vsock_hdr *h)
{
	c->peer_alloc = h->buf_alloc;
	/*
	 * Two threads of the guest may queue packets in another order than they
	 * counted; and no guest can have consumed what was not sent. Both look
	 * like a step beyond tx_cnt and are passed over.
	 */
	if (h->fwd_cnt - c->peer_fwd <= c->tx_cnt - c->peer_fwd)
		c->peer_fwd = h->fwd_cnt;
}

/* The socket takes nothing more: what waits for it is lost, and the guest is told to stop. */
static void output_died(struct vsock_conn *c)
{
	c->out_dead = true;
	c->shut_due |= VSOCK_SHUT_RCV;
}

/* Counts bytes as consumed after a send; true when the socket took something. */
static bool forwarded(struct vsock_conn *c, ssize_t n)
{
	if (n < 0) {
		if (n != -EAGAIN)
			output_died(c);
		return false;
	}
	c->fwd_cnt += (uint32_t)n;
	if (c->fwd_cnt - c->told_fwd >= CREDIT_STEP)
		c->credit_due = true;
	return true;
}

/* Bytes [cnt, cnt + len) of the stream as at most two pieces of the ring. */
static int ring_pieces(const struct vsock_conn *c, uint32_t cnt, uint32_t len, struct iovec out[2])
{
	uint32_t at = cnt % VSOCK_BUF_ALLOC;
	uint32_t first = len < VSOCK_BUF_ALLOC - at ? len : VSOCK_BUF_ALLOC - at;

	out[0] = (struct iovec){c->ring + at, first};
	out[1] = (struct iovec){c->ring, len - first};
	return first < len ? 2 : 1;
}

static void ring_append(struct vsock_conn *c, uint32_t cnt, const uint8_t *p, size_t len)
{
	struct iovec piece[2];

	ring_pieces(c, cnt, (uint32_t)len, piece);
	memcpy(piece[0].iov_base, p, piece[0].iov_len);
	memcpy(piece[1].iov_base, p + piece[0].iov_len, piece[1].iov_len);
	c->ring_used = true;
}

static void flush(struct vsock_conn *c)
{
	struct iovec piece[2];
	uint32_t len;

	while ((len = vsock_conn_pending(c)) > 0) {
		int n = ring_pieces(c, c->fwd_cnt, len, piece);

		if (!forwarded(c, transfer(send_piece, c->fd, piece, n)))
			break;
	}
}

int vsock_conn_receive(struct vsock_conn *c, const struct iovec *iov, int n, uint32_t len)
{
	uint32_t waiting = vsock_conn_pending(c), cnt = c->rx_cnt, done;

	if (c->rx_cnt - c->told_fwd + len > VSOCK_BUF_ALLOC || (c->guest_shut & VSOCK_SHUT_SEND))
		return -EPROTO;
	c->rx_cnt += len;
	if (c->out_dead)
		return 0;
	if (!waiting && len)
		forwarded(c, transfer(send_piece, c->fd, iov, n));
	if (c->out_dead)
		return 0;
	/* The ring takes what the socket did not; it fits, as the credit was checked. */
	done = waiting ? 0 : c->fwd_cnt - cnt;
	for (int i = 0; i < n; i++) {
		size_t skip = done < iov[i].iov_len ? done : iov[i].iov_len;
		size_t part = iov[i].iov_len - skip;

		if (part)
			ring_append(c, cnt + (uint32_t)skip, (uint8_t *)iov[i].iov_base + skip,
				    part);
		cnt += (uint32_t)iov[i].iov_len;
		done -= (uint32_t)skip;
	}
	return 0;
}

void vsock_conn_guest_shutdown(struct vsock_conn *c, uint32_t flags)
{
	c->guest_shut |= (uint8_t)(flags & VSOCK_SHUT_BOTH);
	if ((c->guest_shut & VSOCK_SHUT_RCV) && !c->host_eof) {
		c->host_eof = true;
		c->shut_due |= VSOCK_SHUT_SEND;
		if (c->fd >= 0)
			shutdown(c->fd, SHUT_RD); /* the host's writes fail from here on */
	}
}

void vsock_conn_fd_event(struct vsock_conn *c, uint32_t events)
{
	if (events & EPOLLOUT)
		flush(c);
	if (events & (EPOLLHUP | EPOLLERR)) {
		c->hung_up = true;
		if (c->state == VSOCK_CONN_OPEN)
			output_died(c);
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		c->readable = true; /* a peer that is gone may have left bytes */
}

uint32_t vsock_conn_sendable(const struct vsock_conn *c)
{
	uint32_t inflight = c->tx_cnt - c->peer_fwd;

	if (c->state != VSOCK_CONN_OPEN || !c->readable || c->host_eof || inflight >= c->peer_alloc)
		return 0;
	return c->peer_alloc - inflight < VSOCK_PACKET_MAX ? c->peer_alloc - inflight
							   : VSOCK_PACKET_MAX;
}

bool vsock_conn_wants(const struct vsock_conn *c)
{
	if (c->state != VSOCK_CONN_OPEN)
		return c->state == VSOCK_CONN_WAIT;
	return !c->guest_gone && (c->response_due || c->credit_due ||
				  (c->shut_due & ~c->shut_sent) || vsock_conn_sendable(c) > 0);
}

static uint32_t read_socket(struct vsock_conn *c, const struct iovec *iov, int n)
{
	ssize_t r = transfer(io_recv_some, c->fd, iov, n);

	if (r > 0) {
		c->tx_cnt += (uint32_t)r;
		return (uint32_t)r;
	}
	c->readable = false;
	if (r != -EAGAIN) {
		c->host_eof = true;
		c->shut_due |= VSOCK_SHUT_SEND;
	}
	return 0;
}

bool vsock_conn_next(struct vsock_conn *c, struct vsock_hdr *h, const struct iovec *iov, int n)
{
	*h = (struct vsock_hdr){.type = VSOCK_TYPE_STREAM};
	if (c->state == VSOCK_CONN_WAIT) {
		c->state = VSOCK_CONN_REQUESTED;
		h->op = VSOCK_OP_REQUEST;
	} else if (c->response_due) {
		c->response_due = false;
		h->op = VSOCK_OP_RESPONSE;
	} else if (vsock_conn_sendable(c) && (h->len = read_socket(c, iov, n)) > 0) {
		h->op = VSOCK_OP_RW;
	} else if (c->shut_due & ~c->shut_sent) {
		c->shut_sent = c->shut_due;
		h->op = VSOCK_OP_SHUTDOWN;
		h->flags = c->shut_due;
	} else if (c->credit_due) {
		h->op = VSOCK_OP_CREDIT_UPDATE;
	} else {
		return false;
	}
	h->src_cid = VSOCK_CID_HOST;
	h->src_port = c->host_port;
	h->dst_port = c->guest_port;
	h->buf_alloc = VSOCK_BUF_ALLOC;
	h->fwd_cnt = c->told_fwd = c->fwd_cnt;
	c->credit_due = false;
	return true;
}

enum vsock_fate vsock_conn_review(struct vsock_conn *c)
{
	if (c->state != VSOCK_CONN_OPEN)
		return c->hung_up ? VSOCK_CANCEL : VSOCK_LIVES;
	if (vsock_conn_pending(c) == 0) {
		if (c->guest_gone)
			return VSOCK_CLOSE;
		if (c->guest_shut == VSOCK_SHUT_BOTH)
			return VSOCK_RESET;
		if ((c->guest_shut & VSOCK_SHUT_SEND) && !c->wr_shut && !c->out_dead) {
			c->wr_shut = true;
			shutdown(c->fd, SHUT_WR);
		}
	}
	if (c->fd >= 0 && c->host_eof && c->out_dead)
		return VSOCK_DETACH;
	return VSOCK_LIVES;
}
