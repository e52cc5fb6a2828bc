/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that the guest opens. They live in slots of their own behind
 * those of the host's; the host's port is always the same, so a slot is looked
 * for from guest_port % VSOCK_GUEST_CONNS on, once round: nearly always one
 * step, never more than there are slots, and nothing to be kept in order.
 *
 * A connection waits for its owner's answer as a question: `untold` until the
 * owner takes it, `told` from then on. A told one keeps its slot until the
 * answer comes, also when the guest or its driver has given it up. So the guest
 * cannot make more questions than there are answers, and no id is used twice
 * while an answer to it may be under way.
 *
 * Invariant: bits of told and untold exclude each other and belong to slots in
 * state ASKED; every slot in that state has one of them.
 *
 * Thread: under the device lock. Fork: see vsock.h.
 */
#include "proto/guest.h"
#include "vmm/virtio/virtio_spec.h"
#include "vmm/virtio/vsock_pump.h"

#include <assert.h>
#include <errno.h>
#include <sys/epoll.h>

static_assert(VSOCK_GUEST_CONNS == 64, "a bit for each in one word");
static_assert(GUEST_EGRESS_PORT < VSOCK_PORT_FIRST, "never a port of the host's connections");

static struct vsock_conn *slot_from(struct vsock *v, uint32_t guest_port, unsigned step)
{
	return &v->conn[VSOCK_CONNS + (guest_port % VSOCK_GUEST_CONNS + step) % VSOCK_GUEST_CONNS];
}

struct vsock_conn *vsock_guest_find(struct vsock *v, uint32_t guest_port)
{
	for (unsigned i = 0; i < VSOCK_GUEST_CONNS; i++) {
		struct vsock_conn *c = slot_from(v, guest_port, i);

		if (c->state != VSOCK_CONN_FREE && !c->guest_gone && c->guest_port == guest_port)
			return c;
	}
	return NULL;
}

static struct vsock_conn *free_slot(struct vsock *v, uint32_t guest_port)
{
	/* Second pass: as in vsock_connect(), one whose host has left makes room. */
	for (int pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < VSOCK_GUEST_CONNS; i++) {
			struct vsock_conn *c = slot_from(v, guest_port, i);

			if (pass && c->state == VSOCK_CONN_OPEN && c->fd < 0)
				vsock_end_conn(v, c, true, 0);
			if (c->state == VSOCK_CONN_FREE)
				return c;
		}
	}
	return NULL;
}

bool vsock_guest_request(struct vsock *v, const struct vsock_hdr *request)
{
	struct vsock_conn *c;
	uint32_t turn, slot;

	if (!v->egress || request->dst_port != GUEST_EGRESS_PORT)
		return false;
	c = free_slot(v, request->src_port);
	if (!c)
		return false;
	slot = (uint32_t)(c - v->conn) - VSOCK_CONNS;
	/* The slot and a count of 26 bits; never 0. */
	do
		turn = ++v->questions * VSOCK_GUEST_CONNS;
	while (turn == 0);
	vsock_conn_ask(c, request, turn + slot);
	v->live++;
	v->untold |= 1ull << slot;
	v->events.asked(v->events.arg);
	return true;
}

uint32_t vsock_next_asked(struct vsock *v)
{
	unsigned slot;

	if (!v->untold || __builtin_popcountll(v->told) >= (int)VSOCK_ASKING)
		return 0;
	slot = (unsigned)__builtin_ctzll(v->untold);
	v->untold &= ~(1ull << slot);
	v->told |= 1ull << slot;
	return v->conn[VSOCK_CONNS + slot].cookie;
}

/* Takes note that the question was answered: its connection, or NULL when nobody waits for it. */
static struct vsock_conn *answered(struct vsock *v, uint32_t id)
{
	unsigned slot = id % VSOCK_GUEST_CONNS;
	struct vsock_conn *c = &v->conn[VSOCK_CONNS + slot];

	if (!(v->told >> slot & 1) || c->cookie != id)
		return NULL;
	v->told &= ~(1ull << slot);
	if (v->untold)
		v->events.asked(v->events.arg);
	if (!c->guest_gone)
		return c;
	vsock_drop_conn(v, c);
	return NULL;
}

int vsock_accept(struct vsock *v, uint32_t id, int fd)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET};
	_cleanup_fd int owned = fd;
	struct vsock_conn *c = answered(v, id);
	int rc = 0;

	if (!c)
		return -ENOENT;
	ev.data.u32 = (uint32_t)(c - v->conn);
	if (epoll_ctl(v->epfd, EPOLL_CTL_ADD, fd, &ev) < 0) {
		rc = -errno;
		vsock_end_conn(v, c, true, 0);
	} else {
		vsock_conn_accept(c, take_fd(&owned));
		vsock_review(v, c);
	}
	vsock_run(v);
	virtio_dev_settle(&v->dev);
	return rc;
}

void vsock_reject(struct vsock *v, uint32_t id)
{
	struct vsock_conn *c = answered(v, id);

	if (!c)
		return;
	vsock_end_conn(v, c, true, 0);
	vsock_run(v);
	virtio_dev_settle(&v->dev);
}

void vsock_set_egress(struct vsock *v, bool on)
{
	v->egress = on;
	if (on)
		return;
	v->told = v->untold = 0; /* nobody waits for an answer any more */
	for (unsigned i = VSOCK_CONNS; i < VSOCK_SLOTS; i++)
		if (v->conn[i].state != VSOCK_CONN_FREE)
			vsock_end_conn(v, &v->conn[i], !v->conn[i].guest_gone, 0);
	vsock_run(v);
	virtio_dev_settle(&v->dev);
}
