/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine of the vsock device: moves packets between the queues and the
 * connections, and ends connections. Internal to vsock.c and vsock_pump.c.
 *
 * Thread: under the device lock. Fork: no state besides struct vsock.
 */
#pragma once

#include "vmm/virtio/vsock.h"

#define VSOCK_AGAIN_ID VSOCK_CONNS /* epoll data of again_fd; others are slot numbers */

/* Owes the guest an RST. Its place must be free: see the invariant of struct vsock. */
void vsock_push_rst(struct vsock *v, uint64_t host_cid, uint32_t host_port, uint32_t guest_port);

/* Closes the socket and frees the slot, without a word to anybody. */
void vsock_drop_conn(struct vsock *v, struct vsock_conn *c);

/*
 * Ends a connection and reports it, as refused with err when it was not open
 * yet. rst: the guest is told as well, if it knows of the connection.
 */
void vsock_end_conn(struct vsock *v, struct vsock_conn *c, bool rst, int err);

/* Draws the consequences of whatever has happened to c; it may be gone afterwards. */
void vsock_review(struct vsock *v, struct vsock_conn *c);

/*
 * Does a bounded amount of the work there is, in both directions; arms again_fd
 * when some is left. The caller settles the device afterwards.
 */
void vsock_run(struct vsock *v);
