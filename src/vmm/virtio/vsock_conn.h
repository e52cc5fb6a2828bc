/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One vsock connection: the stream socket of the host on one side, the byte
 * and credit counters that the guest sees on the other. It knows nothing of
 * queues or of other connections; vsock.c moves packets in and out and asks
 * vsock_conn_review() what has become of it.
 *
 * Counters are those of the specification (5.10.6.3), modulo 2^32:
 *   guest -> host: told_fwd <= fwd_cnt <= rx_cnt <= told_fwd + VSOCK_BUF_ALLOC. Bytes
 *     [fwd_cnt, rx_cnt) wait in the ring at [count % VSOCK_BUF_ALLOC]; fwd_cnt moves only as
 *     bytes really leave to the socket, told_fwd is what the guest knows of it.
 *   host -> guest: tx_cnt - peer_fwd bytes are with the guest, never more than peer_alloc.
 *
 * The socket is polled edge-triggered, so an idle, blocked or hung-up one cannot make the loop
 * spin: `readable` remembers the edge until a read finds the socket empty.
 *
 * Ownership: the fd belongs to the connection from vsock_conn_open() or vsock_conn_accept() to
 * vsock_conn_close().
 * Thread: under the device lock. Errors: negative errno.
 * Fork: the child closes all of them (vsock.c); the ring is wiped by the kernel.
 */
#pragma once

#include "lib/cleanup.h"
#include "vmm/virtio/vsock_packet.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define VSOCK_BUF_ALLOC (256u << 10) /* credit given to the guest; a power of two */

enum vsock_conn_state {
	VSOCK_CONN_FREE,
	VSOCK_CONN_WAIT,      /* REQUEST not sent yet: the guest may not be there */
	VSOCK_CONN_REQUESTED, /* REQUEST sent, no answer yet */
	VSOCK_CONN_ASKED,     /* REQUEST received; the owner has yet to say whether */
	VSOCK_CONN_OPEN,
};

struct vsock_conn {
	enum vsock_conn_state state;
	int fd; /* -1 when the host's side is gone, or not there yet */
	uint32_t cookie;
	uint32_t host_port, guest_port;
	uint8_t *ring; /* VSOCK_BUF_ALLOC bytes */
	uint32_t rx_cnt, fwd_cnt, told_fwd;
	uint32_t tx_cnt, peer_fwd, peer_alloc;
	uint8_t guest_shut;          /* VSOCK_SHUT_* received */
	uint8_t shut_due, shut_sent; /* VSOCK_SHUT_* to send, and sent */
	bool readable;               /* the socket may have bytes or EOF */
	bool host_eof;               /* nothing more will be read from the socket */
	bool out_dead;               /* nothing more can be written to the socket */
	bool wr_shut;                /* shutdown(SHUT_WR) done */
	bool hung_up;                /* the host's peer is gone altogether */
	bool credit_due;             /* the guest is to be told fwd_cnt */
	bool response_due;           /* accepted; the guest has yet to be told */
	bool guest_gone;             /* RST received, or sent */
	bool polls_out;              /* EPOLLOUT is armed */
	bool ring_used;
};

/* What has become of a connection. */
enum vsock_fate {
	VSOCK_LIVES,
	VSOCK_DETACH, /* both directions of the socket are over: close it, the guest has yet to
			 answer */
	VSOCK_CLOSE,  /* over */
	VSOCK_RESET,  /* over; the guest is to get an RST */
	VSOCK_CANCEL, /* the host gave up before the guest answered */
};

/* Starts in state WAIT. The ring stays the caller's. */
void vsock_conn_open(struct vsock_conn *c, int fd, uint32_t cookie, uint32_t host_port,
		     uint32_t guest_port);

/* Starts in state ASKED with the REQUEST of a guest, which may be answered by vsock_conn_accept().
 */
void vsock_conn_ask(struct vsock_conn *c, const struct vsock_hdr *request, uint32_t cookie);

/* ASKED becomes OPEN with this socket; the next packet for the guest is the RESPONSE. */
void vsock_conn_accept(struct vsock_conn *c, int fd);

/* Closes the socket; a ring that was used gives its memory back. State FREE afterwards. */
void vsock_conn_close(struct vsock_conn *c);

/* Takes over buf_alloc and fwd_cnt of any packet of the guest. */
void vsock_conn_credit(struct vsock_conn *c, const struct vsock_hdr *h);

/* Payload of an RW packet: to the socket, the rest into the ring. -EPROTO: more than its credit. */
__must_check int vsock_conn_receive(struct vsock_conn *c, const struct iovec *iov, int n,
				    uint32_t len);

/* SHUTDOWN from the guest. */
void vsock_conn_guest_shutdown(struct vsock_conn *c, uint32_t flags);

/* epoll events of the socket. */
void vsock_conn_fd_event(struct vsock_conn *c, uint32_t events);

/* Bytes that the next packet may carry from the socket to the guest; 0: none, or not known to be.
 */
uint32_t vsock_conn_sendable(const struct vsock_conn *c);

/* True when vsock_conn_next() may have a packet for the guest. */
bool vsock_conn_wants(const struct vsock_conn *c);

/*
 * Makes the next packet for the guest: header into h, payload of at most
 * vsock_conn_sendable() bytes into the n segments of iov. False: there is none.
 */
__must_check bool vsock_conn_next(struct vsock_conn *c, struct vsock_hdr *h,
				  const struct iovec *iov, int n);

/* To be asked after every call above; does the shutdown(2) that is due. */
enum vsock_fate vsock_conn_review(struct vsock_conn *c);

/* Bytes in the ring that wait for the socket. */
static inline uint32_t vsock_conn_pending(const struct vsock_conn *c)
{
	return c->out_dead ? 0 : c->rx_cnt - c->fwd_cnt;
}
