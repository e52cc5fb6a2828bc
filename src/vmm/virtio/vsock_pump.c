/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets of the vsock device. vsock_run() takes packets from the transmit
 * queue while an RST for each would find a place, and fills receive buffers
 * while somebody has something for the guest: RSTs first, then connections in
 * turn. It stops after a bounded number of packets and arms again_fd if more is
 * left, so that the loop thread comes back after others had their turn.
 *
 * Invariant: rst_len + live <= VSOCK_RSTS. A connection that ends hands its
 * place to its RST, so an RST is never dropped; a packet of the guest, which may
 * need a place of its own, is taken only when there is one. What a guest does
 * wrong with a packet costs it the connection; what it does wrong with a queue,
 * the device.
 *
 * Thread: under the device lock. Fork: see vsock.h.
 */
#include "vmm/virtio/vsock_pump.h"

#include "proto/guest.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define RUN_PACKETS 128u /* most packets of both directions in one vsock_run() */
#define RUN_SLICE   32u  /* most packets of one direction before the other gets its turn */
#define KEEP_DATA   512u /* most bytes of data in a packet whose buffer is kept */

static unsigned slot_of(const struct vsock *v, const struct vsock_conn *c)
{
	return (unsigned)(c - v->conn);
}

void vsock_push_rst(struct vsock *v, uint64_t host_cid, uint32_t host_port, uint32_t guest_port)
{
	v->rst[(v->rst_head + v->rst_len++) % VSOCK_RSTS] =
		(struct vsock_rst){host_cid, host_port, guest_port};
}

void vsock_drop_conn(struct vsock *v, struct vsock_conn *c)
{
	unsigned slot = slot_of(v, c);

	/* Another process may hold a copy of the socket, which would keep it in epoll. */
	if (c->fd >= 0)
		epoll_ctl(v->epfd, EPOLL_CTL_DEL, c->fd, NULL);
	vsock_conn_close(c);
	v->wanting[slot / 64] &= ~(1ull << slot % 64);
	if (slot >= VSOCK_CONNS) {
		v->untold &= ~(1ull << (slot - VSOCK_CONNS));
		v->told &= ~(1ull << (slot - VSOCK_CONNS));
	}
	v->live--;
}

/* A connection that the guest opened is over. With its owner's answer still to come it stays, mute.
 */
static void end_guest_conn(struct vsock *v, struct vsock_conn *c, bool rst)
{
	uint32_t host_port = c->host_port, guest_port = c->guest_port;

	if (c->fd >= 0)
		shutdown(c->fd, SHUT_RDWR);
	if (v->told >> (slot_of(v, c) - VSOCK_CONNS) & 1)
		c->guest_gone = true;
	else
		vsock_drop_conn(v, c);
	if (rst)
		vsock_push_rst(v, VSOCK_CID_HOST, host_port, guest_port);
}

void vsock_end_conn(struct vsock *v, struct vsock_conn *c, bool rst, int err)
{
	enum vsock_conn_state state = c->state;
	uint32_t host_port = c->host_port, guest_port = c->guest_port, cookie = c->cookie;
	bool reported = state == VSOCK_CONN_OPEN && c->fd < 0;

	if (slot_of(v, c) >= VSOCK_CONNS) {
		end_guest_conn(v, c, rst);
		return;
	}
	/* End of file reaches the host at once, even if a process just forked holds a copy. */
	if (c->fd >= 0)
		shutdown(c->fd, SHUT_RDWR);
	vsock_drop_conn(v, c);
	if (rst && state != VSOCK_CONN_WAIT)
		vsock_push_rst(v, VSOCK_CID_HOST, host_port, guest_port);
	if (state != VSOCK_CONN_OPEN)
		v->events.refused(v->events.arg, cookie, err);
	else if (!reported)
		v->events.closed(v->events.arg, cookie);
}

/* Both directions of the socket are over, but the guest has not answered SHUTDOWN yet. */
static void detach(struct vsock *v, struct vsock_conn *c)
{
	epoll_ctl(v->epfd, EPOLL_CTL_DEL, c->fd, NULL);
	close_fd(&c->fd);
	if (slot_of(v, c) < VSOCK_CONNS)
		v->events.closed(v->events.arg, c->cookie);
}

void vsock_review(struct vsock *v, struct vsock_conn *c)
{
	unsigned slot = slot_of(v, c);
	bool out;

	switch (vsock_conn_review(c)) {
	case VSOCK_CLOSE:
		vsock_end_conn(v, c, false, 0);
		return;
	case VSOCK_RESET:
		vsock_end_conn(v, c, true, 0);
		return;
	case VSOCK_CANCEL:
		vsock_end_conn(v, c, true, ECANCELED);
		return;
	case VSOCK_DETACH:
		detach(v, c);
		break;
	case VSOCK_LIVES:
		break;
	}
	out = vsock_conn_pending(c) > 0;
	if (c->fd >= 0 && out != c->polls_out) {
		struct epoll_event ev = {
			.events = EPOLLET | EPOLLIN | (out ? EPOLLOUT : 0),
			.data.u32 = slot,
		};

		/* Reports at once when it has become writable meanwhile: no edge is lost. */
		c->polls_out = out;
		epoll_ctl(v->epfd, EPOLL_CTL_MOD, c->fd, &ev);
	}
	if (vsock_conn_wants(c))
		v->wanting[slot / 64] |= 1ull << slot % 64;
	else
		v->wanting[slot / 64] &= ~(1ull << slot % 64);
}

static struct vsock_conn *find_conn(struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	struct vsock_conn *c = &v->conn[host_port % VSOCK_CONNS];

	if (host_port == GUEST_EGRESS_PORT)
		return vsock_guest_find(v, guest_port);
	if (c->state < VSOCK_CONN_REQUESTED || c->guest_gone || c->host_port != host_port ||
	    c->guest_port != guest_port)
		return NULL;
	return c;
}

/* An accepted packet, other than RST, for a connection that exists. False: it breaks the rules. */
static bool conn_packet(struct vsock *v, struct vsock_conn *c, const struct vsock_hdr *h)
{
	int n;

	vsock_conn_credit(c, h);
	if (h->op == VSOCK_OP_RESPONSE && c->state == VSOCK_CONN_REQUESTED) {
		c->state = VSOCK_CONN_OPEN;
		v->events.connected(v->events.arg, c->cookie);
		return true;
	}
	if (c->state != VSOCK_CONN_OPEN || c->response_due)
		return false;
	switch (h->op) {
	case VSOCK_OP_RW:
		n = virtq_slice(&v->chain, false, VSOCK_HDR_BYTES, h->len, v->payload);
		return vsock_conn_receive(c, v->payload, n, h->len) == 0;
	case VSOCK_OP_SHUTDOWN:
		vsock_conn_guest_shutdown(c, h->flags);
		return true;
	case VSOCK_OP_CREDIT_UPDATE:
		return true;
	case VSOCK_OP_CREDIT_REQUEST:
		c->credit_due = true;
		return true;
	default:
		return false; /* REQUEST, or a second RESPONSE */
	}
}

static void guest_reset(struct vsock *v, struct vsock_conn *c)
{
	if (c->state == VSOCK_CONN_OPEN) {
		c->guest_gone = true; /* what it sent before is still delivered */
		vsock_review(v, c);
	} else {
		vsock_end_conn(v, c, false, ECONNREFUSED);
	}
}

static void bad_packet(struct vsock *v)
{
	v->bad_packets++;
	v->dev.faults++;
}

/* The packet in v->chain, from the guest: its header's op when it was a good one, else 0. */
static unsigned handle_packet(struct vsock *v)
{
	uint8_t raw[VSOCK_HDR_BYTES];
	enum vsock_verdict verdict;
	struct vsock_conn *c;
	struct vsock_hdr h;

	if (v->chain.out_len < VSOCK_HDR_BYTES) {
		bad_packet(v);
		return 0;
	}
	virtq_read(&v->chain, 0, raw, VSOCK_HDR_BYTES);
	vsock_hdr_unpack(raw, &h);
	verdict = vsock_hdr_check(&h, VSOCK_GUEST_CID, v->chain.out_len - VSOCK_HDR_BYTES);
	if (verdict != VSOCK_ACCEPT)
		bad_packet(v);
	if (verdict == VSOCK_DROP)
		return 0;
	c = h.dst_cid == VSOCK_CID_HOST ? find_conn(v, h.dst_port, h.src_port) : NULL;
	if (!c) {
		bool opened = verdict == VSOCK_ACCEPT && h.op == VSOCK_OP_REQUEST &&
			      vsock_guest_request(v, &h);

		if (!opened && h.op != VSOCK_OP_RST)
			vsock_push_rst(v, h.dst_cid, h.dst_port, h.src_port);
	} else if (verdict == VSOCK_ACCEPT && h.op == VSOCK_OP_RST) {
		guest_reset(v, c);
	} else if (verdict == VSOCK_ACCEPT && conn_packet(v, c, &h)) {
		vsock_review(v, c);
		return h.op;
	} else {
		if (verdict == VSOCK_ACCEPT)
			bad_packet(v);
		vsock_end_conn(v, c, true, ECONNRESET);
	}
	return 0;
}

/*
 * Whether the buffer of a packet that was dealt with may be kept: nobody waits for it, and the
 * driver has half of its descriptors left.
 */
static bool may_keep(const struct vsock *v, const struct virtq *q, unsigned op)
{
	bool idle = op == VSOCK_OP_CREDIT_UPDATE ||
		    (op == VSOCK_OP_RW && v->chain.out_len <= VSOCK_HDR_BYTES + KEEP_DATA);

	return idle && v->chain.n_out + v->chain.n_in <= 2 && virtq_kept(q) < q->size / 4;
}

/* Takes up to max packets from the guest: how many. */
static unsigned pump_tx(struct vsock *v, unsigned max)
{
	struct virtq *q = &v->dev.queue[VSOCK_QUEUE_TX];
	unsigned done = 0;

	while (done < max && v->rst_len + v->live < VSOCK_RSTS && virtio_dev_active(&v->dev)) {
		int rc = virtq_peek(q, &v->chain);

		if (rc < 0)
			virtio_dev_fail(&v->dev);
		if (rc <= 0)
			break;
		if (may_keep(v, q, handle_packet(v)))
			virtq_keep(q);
		else
			virtq_complete(q, &v->chain, 0);
		done++;
	}
	return done;
}

/* The next connection, from the cursor on, that may have a packet; NULL: none. */
static struct vsock_conn *next_wanting(struct vsock *v)
{
	const unsigned words = VSOCK_SLOTS / 64;

	for (unsigned i = 0; i <= words; i++) {
		unsigned w = (v->cursor / 64 + i) % words;
		uint64_t bits = v->wanting[w];

		if (i == 0)
			bits &= ~0ull << v->cursor % 64;
		if (bits)
			return &v->conn[w * 64 + (unsigned)__builtin_ctzll(bits)];
	}
	return NULL;
}

/* Finds a packet for the guest and makes it in v->chain: true, with its header in h. */
static bool next_packet(struct vsock *v, struct vsock_hdr *h)
{
	struct vsock_conn *c;

	if (v->rst_len) {
		const struct vsock_rst *r = &v->rst[v->rst_head];

		*h = (struct vsock_hdr){
			.src_cid = r->host_cid,
			.src_port = r->host_port,
			.dst_port = r->guest_port,
			.type = VSOCK_TYPE_STREAM,
			.op = VSOCK_OP_RST,
		};
		v->rst_head = (v->rst_head + 1) % VSOCK_RSTS;
		v->rst_len--;
		return true;
	}
	while ((c = next_wanting(v)) != NULL) {
		uint32_t len = vsock_conn_sendable(c);
		uint32_t room = v->chain.in_len - VSOCK_HDR_BYTES;
		bool made;
		int n;

		n = virtq_slice(&v->chain, true, VSOCK_HDR_BYTES, len < room ? len : room,
				v->payload);
		made = vsock_conn_next(c, h, v->payload, n);
		vsock_review(v, c);
		if (made) {
			v->cursor = (slot_of(v, c) + 1) % VSOCK_SLOTS;
			return true;
		}
	}
	return false;
}

/* Fills up to max receive buffers: how many. */
static unsigned pump_rx(struct vsock *v, unsigned max)
{
	struct virtq *q = &v->dev.queue[VSOCK_QUEUE_RX];
	uint8_t raw[VSOCK_HDR_BYTES];
	unsigned done = 0;
	struct vsock_hdr h;

	while (done < max && (v->rst_len || next_wanting(v)) && virtio_dev_active(&v->dev)) {
		int rc = virtq_peek(q, &v->chain);

		/* A buffer must have room for a header and at least one byte. */
		if (rc < 0 || (rc > 0 && v->chain.in_len <= VSOCK_HDR_BYTES)) {
			virtio_dev_fail(&v->dev);
			break;
		}
		if (rc == 0 || !next_packet(v, &h))
			break;
		h.dst_cid = VSOCK_GUEST_CID;
		vsock_hdr_pack(raw, &h);
		virtq_write(&v->chain, 0, raw, VSOCK_HDR_BYTES);
		virtq_complete(q, &v->chain, VSOCK_HDR_BYTES + h.len);
		done++;
	}
	/* One interrupt tells of both. */
	if (done)
		virtq_return(&v->dev.queue[VSOCK_QUEUE_TX]);
	return done;
}

void vsock_run(struct vsock *v)
{
	unsigned left = RUN_PACKETS, done = 0;

	if (!virtio_dev_active(&v->dev))
		return;
	do {
		done = pump_tx(v, RUN_SLICE);
		done += pump_rx(v, RUN_SLICE);
		left -= done < left ? done : left;
	} while (done && left);
	if (done)
		eventfd_write(v->again_fd, 1); /* polled edge-triggered, never read */
}
