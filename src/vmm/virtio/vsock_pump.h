/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine of the vsock device: moves packets between the queues and the
 * connections, and ends connections. Internal to vsock.c, vsock_guest.c and
 * vsock_pump.c.
 *
 * Thread: under the device lock. Fork: no state besides struct vsock.
 */
#pragma once

#include "vmm/virtio/vsock.h"

#define VSOCK_AGAIN_ID VSOCK_SLOTS /* epoll data of again_fd; others are slot numbers */

/* Owes the guest an RST. Its place must be free: see the invariant of struct vsock. */
void vsock_push_rst(struct vsock *v, uint64_t host_cid, uint32_t host_port, uint32_t guest_port);

/* Closes the socket and frees the slot, without a word to anybody. */
void vsock_drop_conn(struct vsock *v, struct vsock_conn *c);

/*
 * Ends a connection and reports it, as refused with err when it was not open
 * yet; one that the guest opened is not reported. rst: the guest is told as well, if it knows of
 * the connection. One that the owner is being asked about keeps its slot until the answer has come.
 */
void vsock_end_conn(struct vsock *v, struct vsock_conn *c, bool rst, int err);

/* Draws the consequences of whatever has happened to c; it may be gone afterwards. */
void vsock_review(struct vsock *v, struct vsock_conn *c);

/* The live connection that the guest opened from this port, or NULL (vsock_guest.c). */
struct vsock_conn *vsock_guest_find(struct vsock *v, uint32_t guest_port);

/*
 * A REQUEST of the guest, sound by itself, for no connection that exists. False: it is refused, and
 * an RST is due. The connection takes a place of the invariant (vsock_guest.c).
 */
bool vsock_guest_request(struct vsock *v, const struct vsock_hdr *request);

/*
 * Does a bounded amount of the work there is, in both directions; arms again_fd
 * when some is left. The caller settles the device afterwards.
 */
void vsock_run(struct vsock *v);
