/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-vsock device (virtio 1.2, section 5.10): the only way by which bytes
 * enter or leave a guest. The host opens streams to ports of the guest. A
 * connection that the guest tries to open is answered with RST, unless it is to
 * GUEST_EGRESS_PORT while that is switched on, which it is neither at first nor
 * in a forked child.
 *
 * vsock_connect() takes one end of a UNIX stream socketpair and makes it a
 * stream to a guest port. It may be called before the guest's driver exists:
 * the request waits until there are receive buffers. Time limits are the
 * caller's: when the other end of the socketpair is closed, a request that was
 * not answered is withdrawn.
 *
 * vsock_set_egress() is the switch. A REQUEST that comes while it is on becomes a
 * question with an id: asked() tells the owner that there are some,
 * vsock_next_asked() hands them out, vsock_accept() or vsock_reject() answers.
 * Every question that was handed out is to be answered, or the switch turned off,
 * which forgets them all. The guest may give up in between: the answer is then of
 * no consequence. At most VSOCK_GUEST_CONNS such connections exist, waiting ones
 * included, in places of their own; a REQUEST beyond that gets an RST at once, and
 * so does a second one from a port that has a connection, which ends, too. At most
 * VSOCK_ASKING questions are with the owner at a time, whatever the guest does.
 * Once accepted, they are streams like the others, but not reported: their end is
 * seen on the socket.
 *
 * Flow control is end to end and memory is bounded: at most VSOCK_SLOTS
 * connections, VSOCK_BUF_ALLOC bytes waiting in each direction that the host
 * buffers (guest -> host), nothing buffered in the other. RSTs that are owed
 * to the guest have a queue with a place for each connection; when it is full
 * the transmit queue stands still until the guest offers receive buffers.
 *
 * A driver has nothing to wait for after a credit update, nor after a packet with a
 * few bytes of data, such as the answer of a call. Their buffers are kept
 * (virtq_keep()) until there is a reason for an interrupt anyway: any other packet,
 * in either direction. The driver never runs out of buffers for it: at most half of
 * its descriptors are kept, and none once it notifies without having offered
 * anything, as Linux' does when it finds no room (virtqueue_add() of a full queue).
 * What else it may wait for, such as the end of a zero-copy send, hangs on packets
 * with more data.
 *
 * Events of sockets: vsock_event_fd() is an epoll descriptor that the owner
 * watches for EPOLLIN in its loop (level-triggered), calling
 * vsock_handle_events(). Sockets are added and removed behind it under the
 * device lock, so any thread may do so.
 *
 * Thread: all functions under the VM's device lock; vCPU threads come in
 * through the transport, the loop thread through vsock_handle_events(),
 * vsock_connect() and what concerns connections of the guest. Nothing allocates
 * after vsock_init(): the rings are one reservation whose pages are touched only
 * when a socket does not keep up.
 *
 * Saved state: port counter and the addresses of live connections, whoever opened
 * them, each of which becomes an RST to the guest after a load; the switch is off.
 *
 * Fork: the child's hook closes its copies of all sockets and of the epoll
 * descriptor, without callbacks, turns the switch off, and owes the guest one RST
 * for each connection; the owner then watches the new vsock_event_fd(). The parent's
 * connections and questions go on untouched. Rings are wiped in the child by the kernel.
 */
#pragma once

#include "lib/cleanup.h"
#include "vmm/virtio/mmio.h"
#include "vmm/virtio/vsock_conn.h"

#include <stdint.h>

#define VSOCK_GUEST_CID   3u
#define VSOCK_CONNS       256u /* opened by the host; a power of two */
#define VSOCK_GUEST_CONNS 64u  /* opened by the guest */
#define VSOCK_SLOTS       (VSOCK_CONNS + VSOCK_GUEST_CONNS)
#define VSOCK_RSTS        512u /* > VSOCK_SLOTS; the rest is for refusals */
/* Questions that are with the owner at a time: they fit its socket beside everything else. */
#define VSOCK_ASKING     16u
#define VSOCK_PORT_FIRST (1u << 30)
#define VSOCK_PORT_LAST  0xfffffffeu /* 0xffffffff means "any" */

/*
 * Reports to the owner, under the device lock; they must not call back. Every
 * cookie that vsock_connect() accepted ends with exactly one of refused and
 * closed. The host's end reads all that the guest sent and then EOF, or
 * ECONNRESET if it had written bytes that nobody took.
 */
struct vsock_events {
	void (*connected)(void *arg, uint32_t cookie);
	/* err: positive errno. ECONNREFUSED: no listener; ECANCELED: the host gave up;
	 * ECONNRESET: the guest's driver was reset before it answered. */
	void (*refused)(void *arg, uint32_t cookie, int err);
	void (*closed)(void *arg, uint32_t cookie);
	/* vsock_next_asked() may have something. */
	void (*asked)(void *arg);
	void *arg;
};

struct vsock_rst {
	uint64_t host_cid; /* what the guest had addressed; VSOCK_CID_HOST for connections */
	uint32_t host_port, guest_port;
};

struct vsock {
	struct virtio_dev dev; /* first: the hooks of virtio_ops get a pointer to it */
	struct vsock_events events;
	int epfd, again_fd;
	uint8_t *rings;
	uint32_t next_port;
	unsigned live;                      /* connections that are not FREE */
	unsigned cursor;                    /* slot to serve next */
	uint64_t wanting[VSOCK_SLOTS / 64]; /* bit per slot: may have a packet for the guest */
	/*
	 * A connection of the host's lives in slot host_port % VSOCK_CONNS, one of the guest's in
	 * any of the VSOCK_GUEST_CONNS behind these (vsock_guest.c).
	 */
	struct vsock_conn conn[VSOCK_SLOTS];
	bool egress;           /* the guest may open connections */
	uint32_t questions;    /* so many, for their ids */
	uint64_t untold, told; /* bit per slot of the guest's: a question, with the owner */
	struct vsock_rst rst[VSOCK_RSTS]; /* ring; rst_len + live <= VSOCK_RSTS always */
	unsigned rst_head, rst_len;
	struct virtq_chain chain;
	struct iovec payload[VIRTQ_SIZE_MAX];
	uint64_t bad_packets; /* refused or dropped; counted in dev.faults, too */
};

/* 0 or -errno. events and host are copied. */
__must_check int vsock_init(struct vsock *v, const struct gmem *mem, const struct virtio_host *host,
			    const struct vsock_events *events);

/* Closes everything, without callbacks. */
void vsock_free(struct vsock *v);

/*
 * Opens a stream to a guest port; the outcome is reported by connected() or
 * refused() with the cookie, possibly before this returns. fd is taken over in
 * any case. -EAGAIN: all connections are in use.
 */
__must_check int vsock_connect(struct vsock *v, uint32_t guest_port, int fd, uint32_t cookie);

/*
 * Lets the guest open connections to GUEST_EGRESS_PORT, or ends those that it has opened, forgets
 * all questions and lets it open none.
 */
void vsock_set_egress(struct vsock *v, bool on);

/* The id of a question for the owner, which is to answer it; 0: there is none, or enough are out.
 */
uint32_t vsock_next_asked(struct vsock *v);

/*
 * Answers a question. fd is taken over in any case. -ENOENT: nobody waits for this answer; another
 * error: the guest was refused.
 */
__must_check int vsock_accept(struct vsock *v, uint32_t id, int fd);
void vsock_reject(struct vsock *v, uint32_t id);

/* Descriptor to watch; another one after virtio_dev_fork_child(). */
static inline int vsock_event_fd(const struct vsock *v)
{
	return v->epfd;
}

void vsock_handle_events(struct vsock *v);

/* Connections that exist, waiting ones included. */
static inline unsigned vsock_streams(const struct vsock *v)
{
	return v->live;
}
