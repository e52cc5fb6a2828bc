/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vsock device as the machine sees it: life, hooks of the transport, new
 * connections and the events of their sockets. Packets: vsock_pump.c.
 *
 * Thread: under the device lock. Fork: see vsock.h.
 */
#define _GNU_SOURCE
#include "vmm/virtio/vsock.h"

#include "vmm/virtio/virtio_spec.h"
#include "vmm/virtio/vsock_pump.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#define QUEUE_SIZE 128

static_assert((VSOCK_CONNS & (VSOCK_CONNS - 1)) == 0 && VSOCK_SLOTS % 64 == 0, "slot numbering");
static_assert(VSOCK_RSTS > VSOCK_SLOTS, "an RST for every connection");
static_assert((VSOCK_BUF_ALLOC & (VSOCK_BUF_ALLOC - 1)) == 0, "ring offsets wrap at 2^32");

static struct vsock *vsock_of(struct virtio_dev *dev)
{
	return (struct vsock *)(void *)dev;
}

static int make_epoll(struct vsock *v)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.u32 = VSOCK_AGAIN_ID};

	v->again_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	v->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (v->epfd < 0 || v->again_fd < 0 ||
	    epoll_ctl(v->epfd, EPOLL_CTL_ADD, v->again_fd, &ev) < 0)
		return -errno;
	return 0;
}

static int pick_slot(struct vsock *v, uint32_t *port)
{
	/* Second pass: take a slot whose host has left and whose guest has yet to say so. */
	for (int pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < VSOCK_CONNS; i++) {
			struct vsock_conn *c;

			*port = v->next_port;
			v->next_port = *port == VSOCK_PORT_LAST ? VSOCK_PORT_FIRST : *port + 1;
			c = &v->conn[*port % VSOCK_CONNS];
			if (pass && c->state == VSOCK_CONN_OPEN && c->fd < 0)
				vsock_end_conn(v, c, true, 0);
			if (c->state == VSOCK_CONN_FREE)
				return 0;
		}
	}
	return -EAGAIN;
}

int vsock_connect(struct vsock *v, uint32_t guest_port, int fd, uint32_t cookie)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET};
	_cleanup_fd int owned = fd;
	struct vsock_conn *c;
	uint32_t port;
	int rc;

	if (v->rst_len + v->live >= VSOCK_RSTS)
		return -EAGAIN;
	rc = pick_slot(v, &port);
	if (rc)
		return rc;
	ev.data.u32 = port % VSOCK_CONNS;
	if (epoll_ctl(v->epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
		return -errno;
	c = &v->conn[ev.data.u32];
	vsock_conn_open(c, take_fd(&owned), cookie, port, guest_port);
	v->live++;
	vsock_review(v, c);
	vsock_run(v);
	virtio_dev_settle(&v->dev);
	return 0;
}

void vsock_handle_events(struct vsock *v)
{
	struct epoll_event ev[64];
	int n = epoll_wait(v->epfd, ev, ARRAY_SIZE(ev), 0);

	for (int i = 0; i < n; i++) {
		struct vsock_conn *c;

		if (ev[i].data.u32 >= VSOCK_SLOTS)
			continue;
		c = &v->conn[ev[i].data.u32];
		if (c->fd < 0)
			continue;
		vsock_conn_fd_event(c, ev[i].events);
		vsock_review(v, c);
	}
	vsock_run(v);
	virtio_dev_settle(&v->dev);
}

static int activate(struct virtio_dev *dev)
{
	for (unsigned i = 0; i < VSOCK_QUEUES; i++)
		if (!dev->queue[i].ready)
			return -EPROTO;
	return 0;
}

static void notify(struct virtio_dev *dev, unsigned q)
{
	struct virtq *tx = &dev->queue[VSOCK_QUEUE_TX];
	uint16_t before = tx->next_avail;

	/* Nothing is reported by the event queue (fork sends RSTs). */
	if (q == VSOCK_QUEUE_EVENT)
		return;
	vsock_run(vsock_of(dev));
	/* A notification of nothing: the driver may lack room. */
	if (q == VSOCK_QUEUE_TX && tx->next_avail == before)
		virtq_return(tx);
}

static void config_read(struct virtio_dev *dev, uint32_t off, void *data, uint32_t len)
{
	static const uint8_t config[VSOCK_CONFIG_BYTES] = {VSOCK_GUEST_CID};

	(void)dev;
	memcpy(data, config + off, len);
}

/* Connections that the driver has not heard of yet survive: it resets the device when it starts. */
static void reset(struct virtio_dev *dev)
{
	struct vsock *v = vsock_of(dev);

	v->rst_len = 0;
	for (unsigned i = 0; i < VSOCK_SLOTS; i++)
		if (v->conn[i].state > VSOCK_CONN_WAIT)
			vsock_end_conn(v, &v->conn[i], false, ECONNRESET);
}

static bool owes_rst(const struct vsock_conn *c)
{
	return c->state >= VSOCK_CONN_REQUESTED && !c->guest_gone;
}

static void put_rst(struct bytes_out *o, uint64_t cid, uint32_t host_port, uint32_t guest_port)
{
	bytes_put(o, cid, 8);
	bytes_put(o, host_port, 4);
	bytes_put(o, guest_port, 4);
}

static void save(const struct virtio_dev *dev, struct bytes_out *o)
{
	const struct vsock *v = (const struct vsock *)(const void *)dev;
	unsigned n = v->rst_len;

	for (unsigned i = 0; i < VSOCK_SLOTS; i++)
		n += owes_rst(&v->conn[i]);
	bytes_put(o, v->next_port, 4);
	bytes_put(o, n, 2);
	for (unsigned i = 0; i < v->rst_len; i++) {
		const struct vsock_rst *r = &v->rst[(v->rst_head + i) % VSOCK_RSTS];

		put_rst(o, r->host_cid, r->host_port, r->guest_port);
	}
	for (unsigned i = 0; i < VSOCK_SLOTS; i++)
		if (owes_rst(&v->conn[i]))
			put_rst(o, VSOCK_CID_HOST, v->conn[i].host_port, v->conn[i].guest_port);
}

static int load(struct virtio_dev *dev, struct bytes_in *in)
{
	struct vsock *v = vsock_of(dev);
	uint32_t port;
	unsigned n;

	port = bytes_get32(in);
	n = bytes_get16(in);
	if (port < VSOCK_PORT_FIRST || port > VSOCK_PORT_LAST || n + v->live > VSOCK_RSTS)
		return -EPROTO;
	v->next_port = port;
	for (unsigned i = 0; i < n && !in->bad; i++) {
		uint64_t cid = bytes_get(in, 8);
		uint32_t host_port = bytes_get32(in);

		vsock_push_rst(v, cid, host_port, bytes_get32(in));
	}
	return in->bad ? -EPROTO : 0;
}

static int fork_child(struct virtio_dev *dev)
{
	struct vsock *v = vsock_of(dev);

	/* The epoll descriptor is the parent's object: closed, not changed. */
	close_fd(&v->epfd);
	close_fd(&v->again_fd);
	v->egress = false;
	for (unsigned i = 0; i < VSOCK_SLOTS; i++) {
		struct vsock_conn c = v->conn[i];

		if (c.state == VSOCK_CONN_FREE)
			continue;
		vsock_drop_conn(v, &v->conn[i]);
		if (owes_rst(&c))
			vsock_push_rst(v, VSOCK_CID_HOST, c.host_port, c.guest_port);
	}
	return make_epoll(v);
}

static const struct virtio_ops vsock_ops = {
	.device_id = VIRTIO_ID_VSOCK,
	.features = VIRTIO_F_VERSION_1,
	.queue_count = VSOCK_QUEUES,
	.queue_size_max = QUEUE_SIZE,
	.config_bytes = VSOCK_CONFIG_BYTES,
	.activate = activate,
	.notify = notify,
	.config_read = config_read,
	.reset = reset,
	.save = save,
	.load = load,
	.fork_child = fork_child,
};

int vsock_init(struct vsock *v, const struct gmem *mem, const struct virtio_host *host,
	       const struct vsock_events *events)
{
	const size_t bytes = (size_t)VSOCK_SLOTS * VSOCK_BUF_ALLOC;
	void *rings;
	int rc;

	memset(v, 0, sizeof(*v));
	virtio_dev_init(&v->dev, &vsock_ops, mem, host);
	v->events = *events;
	v->next_port = VSOCK_PORT_FIRST;
	v->epfd = v->again_fd = -1;
	for (unsigned i = 0; i < VSOCK_SLOTS; i++)
		v->conn[i].fd = -1;
	rings = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (rings == MAP_FAILED)
		return -errno;
	v->rings = rings;
	/* What waits here for the parent's clients is no business of a forked child. */
	if (madvise(rings, bytes, MADV_WIPEONFORK) < 0)
		rc = -errno;
	else
		rc = make_epoll(v);
	for (unsigned i = 0; i < VSOCK_SLOTS; i++)
		v->conn[i].ring = v->rings + (size_t)i * VSOCK_BUF_ALLOC;
	if (rc)
		vsock_free(v);
	return rc;
}

void vsock_free(struct vsock *v)
{
	for (unsigned i = 0; i < VSOCK_SLOTS; i++)
		close_fd(&v->conn[i].fd);
	close_fd(&v->epfd);
	close_fd(&v->again_fd);
	if (v->rings)
		munmap(v->rings, (size_t)VSOCK_SLOTS * VSOCK_BUF_ALLOC);
	v->rings = NULL;
}
