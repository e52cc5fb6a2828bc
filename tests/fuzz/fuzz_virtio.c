/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole vsock device as a hostile guest and a restless host see it. The
 * input is a script of register accesses, writes to guest memory, packets with
 * ports that exist, actions of the host on its sockets, and its switch and answers
 * for connections of the guest. After every step
 * the invariants of the device are checked; the sanitizers watch the rest. All of it happens twice,
 * the second time with a guest whose memory changes behind the device's reads (fetch.h).
 */
#define _GNU_SOURCE
#include "../virtio_driver.h"
#include "fetch.h"
#include "ram.h"

#include "lib/io.h"
#include "proto/guest.h"
#include "vmm/virtio/virtio_spec.h"
#include "vmm/virtio/vsock.h"

#include <errno.h>
#include <sys/socket.h>

#define RAM      (64u << 10)
#define STREAMS  48u
#define QUEUE    16u
#define RX_BUF   0x8000u /* 16 buffers of 512 bytes */
#define TX_BUF   0xa000u /* 16 of 1 KiB */
#define RING(q)  (0x1000u + (q)*0x1000u)
#define AVAIL(q) (RING(q) + 0x400u)
#define USED(q)  (RING(q) + 0x800u)

struct world {
	struct gmem mem;
	struct vsock v;
	int host[STREAMS];
	unsigned opened;
	uint8_t connects[STREAMS], ends[STREAMS];
	uint16_t idx[VSOCK_QUEUES];      /* of the well-behaved driver */
	uint32_t question[VSOCK_ASKING]; /* ids that are to be answered; 0: none */
	bool told;                       /* that there are some to be taken */
};

static void on_irq(void *arg)
{
	(void)arg;
}

static void on_connected(void *arg, uint32_t cookie)
{
	struct world *w = arg;

	MUST(cookie < w->opened && w->connects[cookie]++ == 0 && w->ends[cookie] == 0);
}

static void on_refused(void *arg, uint32_t cookie, int err)
{
	struct world *w = arg;

	MUST(cookie < w->opened && w->connects[cookie] == 0 && w->ends[cookie]++ == 0 && err > 0);
}

static void on_closed(void *arg, uint32_t cookie)
{
	struct world *w = arg;

	MUST(cookie < w->opened && w->connects[cookie] == 1 && w->ends[cookie]++ == 0);
}

static void on_asked(void *arg)
{
	((struct world *)arg)->told = true;
}

static void device_init(struct world *w, struct vsock *v)
{
	const struct virtio_host host = {.raise_irq = on_irq, .arg = w};
	const struct vsock_events ev = {on_connected, on_refused, on_closed, on_asked, w};

	MUST(vsock_init(v, &w->mem, &host, &ev) == 0);
}

static void reg(struct world *w, uint32_t off, uint32_t v)
{
	driver_write(&w->v.dev, off, v);
	fetch_settle();
}

static void poke(struct world *w, uint32_t at, uint64_t v, unsigned n)
{
	MUST(at + n <= RAM);
	memcpy(w->mem.base + at, &v, n);
}

/* The start of a driver that keeps the rules. */
static void start(struct world *w)
{
	driver_negotiate(&w->v.dev, 0);
	for (uint32_t q = 0; q < VSOCK_QUEUES; q++) {
		memset(w->mem.base + RING(q), 0, 0x1000);
		w->idx[q] = 0;
		reg(w, VIRTIO_MMIO_QUEUE_SEL, q);
		reg(w, VIRTIO_MMIO_QUEUE_NUM, QUEUE);
		reg(w, VIRTIO_MMIO_QUEUE_DESC_LOW, RING(q));
		reg(w, VIRTIO_MMIO_QUEUE_DRIVER_LOW, AVAIL(q));
		reg(w, VIRTIO_MMIO_QUEUE_DEVICE_LOW, USED(q));
		reg(w, VIRTIO_MMIO_QUEUE_READY, 1);
	}
	reg(w, VIRTIO_MMIO_STATUS, 0xf);
}

static void desc(struct world *w, uint32_t q, uint32_t i, uint64_t addr, uint32_t len,
		 uint32_t flags_next)
{
	poke(w, RING(q) + 16 * i, addr, 8);
	poke(w, RING(q) + 16 * i + 8, len | (uint64_t)flags_next << 32, 8);
}

static void offer(struct world *w, uint32_t q, uint32_t head)
{
	poke(w, AVAIL(q) + 4 + 2 * (w->idx[q] % QUEUE), head, 2);
	poke(w, AVAIL(q) + 2, ++w->idx[q], 2);
}

static void post_rx(struct world *w, uint8_t n)
{
	for (unsigned k = 0; k < n % 17u; k++) {
		uint32_t i = w->idx[0] % QUEUE;

		desc(w, VSOCK_QUEUE_RX, i, RX_BUF + 512 * i, 512, VIRTQ_DESC_F_WRITE);
		offer(w, VSOCK_QUEUE_RX, i);
	}
	reg(w, VIRTIO_MMIO_QUEUE_NOTIFY, VSOCK_QUEUE_RX);
}

/* A packet that fits one of the host's connections, with some fields from the input. */
static void packet(struct world *w, struct input *in, const struct vsock_conn *c)
{
	uint32_t i = w->idx[1] % QUEUE, at = TX_BUF + 1024 * i, cut;
	uint8_t odd = input_u8(in);
	struct vsock_hdr h = {
		.src_cid = VSOCK_GUEST_CID,
		.dst_cid = VSOCK_CID_HOST,
		.src_port = c->guest_port,
		.dst_port = c->host_port,
		.type = VSOCK_TYPE_STREAM,
		.op = odd % 8,
		.buf_alloc = 4000,
		.fwd_cnt = c->tx_cnt,
	};

	if (h.op == VSOCK_OP_RW)
		h.len = (uint32_t)input_int(in, 2) % (1024 - VSOCK_HDR_BYTES);
	if (h.op == VSOCK_OP_SHUTDOWN)
		h.flags = odd >> 3;
	else if (odd & 0x80) {
		h.buf_alloc = (uint32_t)input_int(in, 4);
		h.fwd_cnt = (uint32_t)input_int(in, 4);
	}
	vsock_hdr_pack(w->mem.base + at, &h);
	cut = odd & 0x40 ? 1 + odd % 43 : VSOCK_HDR_BYTES + h.len;
	if (cut < VSOCK_HDR_BYTES) {
		desc(w, 1, i, at, cut, VIRTQ_DESC_F_NEXT | ((i + 1) % QUEUE) << 16);
		desc(w, 1, (i + 1) % QUEUE, at + cut, VSOCK_HDR_BYTES + h.len - cut, 0);
	} else {
		desc(w, 1, i, at, cut, 0);
	}
	offer(w, VSOCK_QUEUE_TX, i);
	if (!(odd & 0x20))
		reg(w, VIRTIO_MMIO_QUEUE_NOTIFY, VSOCK_QUEUE_TX);
}

/* One of a connection of the guest's, which it may be about to open. */
static void guest_packet(struct world *w, struct input *in)
{
	struct vsock_conn c = {.host_port = GUEST_EGRESS_PORT, .guest_port = input_u8(in) % 80};

	for (unsigned i = VSOCK_CONNS; i < VSOCK_SLOTS; i++)
		if (w->v.conn[i].guest_port == c.guest_port)
			c.tx_cnt = w->v.conn[i].tx_cnt;
	packet(w, in, &c);
}

/* An end for the host, which is kept, and one for the device: -1 when there have been enough. */
static int new_stream(struct world *w)
{
	int sv[2], small = 1;

	if (w->opened == STREAMS)
		return -1;
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
	/* A small socket buffer, so that the rings come into play. */
	MUST(setsockopt(sv[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)) == 0);
	w->host[w->opened++] = sv[0];
	return sv[1];
}

static void take_questions(struct world *w)
{
	uint32_t id;

	while ((id = vsock_next_asked(&w->v)) != 0) {
		unsigned free = VSOCK_ASKING;

		for (unsigned i = VSOCK_ASKING; i-- > 0;) {
			MUST(w->question[i] != id);
			if (!w->question[i])
				free = i;
		}
		MUST(free < VSOCK_ASKING);
		w->question[free] = id;
	}
	w->told = false;
}

static void host_answers(struct world *w, struct input *in)
{
	uint8_t what = input_u8(in);
	uint32_t *id = &w->question[what / 8 % VSOCK_ASKING], wrong;
	int fd, rc;

	switch (what % 8) {
	case 0:
		vsock_set_egress(&w->v, false);
		memset(w->question, 0, sizeof(w->question));
		break;
	case 1:
	case 2:
		vsock_set_egress(&w->v, true);
		break;
	case 3:
	case 4:
		take_questions(w);
		break;
	case 5:
		fd = *id ? new_stream(w) : -1;
		if (fd < 0)
			break;
		rc = vsock_accept(&w->v, *id, fd);
		MUST(rc == 0 || rc == -ENOENT);
		w->connects[w->opened - 1] = w->ends[w->opened - 1] = 1; /* no report is due */
		*id = 0;
		break;
	case 6:
		vsock_reject(&w->v, *id);
		*id = 0;
		break;
	case 7:
		wrong = (uint32_t)input_int(in, 4);
		for (unsigned i = 0; i < VSOCK_ASKING; i++)
			if (w->question[i] == wrong)
				return;
		vsock_reject(&w->v, wrong);
		MUST(vsock_accept(&w->v, wrong, -1) == -ENOENT);
		break;
	}
}

static void host_connects(struct world *w, struct input *in)
{
	uint32_t port = input_u8(in), cookie = w->opened;
	int fd = new_stream(w);

	if (fd >= 0 && vsock_connect(&w->v, port, fd, cookie) < 0)
		w->ends[cookie]++;
}

static void host_acts(struct world *w, struct input *in)
{
	static uint8_t data[65536];
	uint8_t what = input_u8(in);
	ssize_t n;
	int *fd;

	if (!w->opened)
		return;
	fd = &w->host[input_u8(in) % w->opened];
	if (*fd < 0)
		return;
	switch (what % 5) {
	case 0:
		(void)io_send_some(*fd, data, (size_t)input_int(in, 2));
		break;
	case 1:
		n = io_read_some(*fd, data, (size_t)input_int(in, 2));
		fetch_told(data, n > 0 ? (size_t)n : 0);
		break;
	case 2:
		shutdown(*fd, SHUT_WR);
		break;
	case 3:
		shutdown(*fd, SHUT_RD);
		break;
	case 4:
		close_fd(fd);
		break;
	}
}

/* Saves, loads into a second device, saves again: the same bytes; then a damaged copy. */
static void save_load(struct world *w, struct input *in)
{
	static uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	static struct vsock v2;
	int len = virtio_dev_save(&w->v.dev, a, sizeof(a)), rc;

	MUST(len > 0);
	device_init(w, &v2);
	/* A live queue may have been changed in guest memory only; its registers must load. */
	MUST(virtio_dev_load(&v2.dev, a, (size_t)len) == 0);
	MUST(virtio_dev_save(&v2.dev, b, sizeof(b)) == len && memcmp(a, b, (size_t)len) == 0);
	vsock_free(&v2);
	device_init(w, &v2);
	a[input_int(in, 2) % (unsigned)len] ^= input_u8(in);
	rc = virtio_dev_load(&v2.dev, a, (size_t)len);
	if (rc == 0)
		virtio_dev_resume(&v2.dev);
	else
		MUST(v2.dev.status == 0 && v2.rst_len == 0);
	vsock_free(&v2);
}

/* A slot for connections of the guest that is in use. */
UNGUIDED static void check_guest_slot(const struct world *w, unsigned i)
{
	const struct vsock_conn *c = &w->v.conn[i];
	bool told = w->v.told >> (i - VSOCK_CONNS) & 1;
	bool asked = told || w->v.untold >> (i - VSOCK_CONNS) & 1;

	MUST(w->v.egress && c->host_port == GUEST_EGRESS_PORT);
	MUST(c->state == VSOCK_CONN_ASKED || c->state == VSOCK_CONN_OPEN);
	MUST(asked == (c->state == VSOCK_CONN_ASKED) && (!asked || c->fd == -1));
	MUST(c->state == VSOCK_CONN_OPEN || !c->guest_gone || told);
	for (unsigned k = VSOCK_CONNS; k < i; k++)
		MUST(c->guest_gone || w->v.conn[k].guest_gone ||
		     w->v.conn[k].state == VSOCK_CONN_FREE ||
		     w->v.conn[k].guest_port != c->guest_port);
}

UNGUIDED static void check_questions(const struct world *w)
{
	unsigned out = 0;

	MUST(!(w->v.told & w->v.untold));
	for (unsigned i = 0; i < VSOCK_ASKING; i++)
		out += w->question[i] != 0;
	MUST(out == (unsigned)__builtin_popcountll(w->v.told));
	/* The owner has been told of all that it could take. */
	MUST(!w->v.untold || out == VSOCK_ASKING || w->told);
}

UNGUIDED static void check(const struct world *w)
{
	unsigned live = 0;

	for (unsigned i = 0; i < VSOCK_SLOTS; i++) {
		const struct vsock_conn *c = &w->v.conn[i];

		if (c->state == VSOCK_CONN_FREE) {
			MUST(c->fd == -1 && !(w->v.wanting[i / 64] >> i % 64 & 1));
			MUST(i < VSOCK_CONNS ||
			     !((w->v.told | w->v.untold) >> (i - VSOCK_CONNS) & 1));
			continue;
		}
		live++;
		if (i >= VSOCK_CONNS) {
			check_guest_slot(w, i);
		} else {
			MUST(c->host_port % VSOCK_CONNS == i);
			MUST(c->state == VSOCK_CONN_OPEN || c->fd >= 0);
		}
		MUST(c->rx_cnt - c->told_fwd <= VSOCK_BUF_ALLOC);
		MUST(vsock_conn_pending(c) <= VSOCK_BUF_ALLOC);
		MUST(vsock_conn_pending(c) == 0 || c->polls_out);
		MUST(vsock_conn_wants(c) == (w->v.wanting[i / 64] >> i % 64 & 1));
	}
	MUST(live == w->v.live && live + w->v.rst_len <= VSOCK_RSTS);
	for (unsigned q = 0; q < VSOCK_QUEUES; q++)
		MUST(!w->v.dev.queue[q].used_moved &&
		     virtq_kept(&w->v.dev.queue[q]) <=
			     (q == VSOCK_QUEUE_TX ? w->v.dev.queue[q].size / 4 : 0));
	if (w->v.dev.status & (VIRTIO_STATUS_NEEDS_RESET | VIRTIO_STATUS_FAILED))
		for (unsigned i = 0; i < VSOCK_SLOTS; i++)
			MUST(w->v.conn[i].state <= VSOCK_CONN_WAIT ||
			     (w->v.conn[i].state == VSOCK_CONN_ASKED && w->v.conn[i].guest_gone));
	check_questions(w);
}

static void step(struct world *w, struct input *in)
{
	uint8_t buf[256], op = input_u8(in);
	uint64_t off;
	unsigned len;

	switch (op % 12) {
	case 0:
		reg(w, 4u * input_u8(in), (uint32_t)input_int(in, 4));
		break;
	case 1:
		off = input_int(in, 2);
		virtio_mmio_read(&w->v.dev, off, buf, 1 + op / 12 % 8);
		break;
	case 2:
		off = input_int(in, 2);
		len = input_u8(in);
		input_bytes(in, buf, len);
		if (len <= RAM - off)
			memcpy(w->mem.base + off, buf, len);
		break;
	case 3:
		start(w);
		break;
	case 4:
		post_rx(w, input_u8(in));
		break;
	case 5:
		packet(w, in, &w->v.conn[input_u8(in) % VSOCK_CONNS]);
		break;
	case 6:
		guest_packet(w, in);
		break;
	case 7:
		if (op & 0x80)
			host_answers(w, in);
		else
			host_connects(w, in);
		break;
	case 8:
		host_acts(w, in);
		break;
	case 9:
		if (op & 0x80)
			w->v.dev.host.defer_notify = op & 0x40 ? on_irq : NULL;
		virtio_dev_run_kicks(&w->v.dev);
		vsock_handle_events(&w->v);
		break;
	case 10:
		reg(w, VIRTIO_MMIO_QUEUE_NOTIFY, op / 12 % 4);
		break;
	case 11:
		if (op & 0x80)
			save_load(w, in);
		else if (op & 0x40) {
			MUST(virtio_dev_fork_child(&w->v.dev) == 0);
			memset(w->ends, 1, w->opened); /* dropped without a report */
			memset(w->question, 0, sizeof(w->question));
			MUST(!w->v.egress && w->v.live == 0);
		} else
			virtio_mmio_write(&w->v.dev, input_int(in, 2), buf, 1 + op / 12 % 8);
		break;
	}
	fetch_settle();
	check(w);
}

/* What the device did of which it has not told in its rings. */
static void tell(struct world *w)
{
	static uint8_t data[65536];
	ssize_t n;

	fetch_told(&w->v.dev.status, sizeof(w->v.dev.status));
	fetch_told(&w->v.bad_packets, sizeof(w->v.bad_packets));
	fetch_told(w->connects, sizeof(w->connects));
	fetch_told(w->ends, sizeof(w->ends));
	fetch_told(w->question, sizeof(w->question));
	for (unsigned i = 0; i < w->opened; i++)
		while (w->host[i] >= 0 && (n = io_read_some(w->host[i], data, sizeof(data))) > 0)
			fetch_told(data, (size_t)n);
	fetch_told(w->mem.base, RAM);
}

static void run(struct world *w, struct input in, bool hostile)
{
	struct gmem mem = w->mem;

	memset(w, 0, sizeof(*w));
	w->mem = mem;
	fuzz_ram(&w->mem, RAM);
	device_init(w, &w->v);
	fetch_begin(&w->mem, hostile);
	while (in.left)
		step(w, &in);
	tell(w);
	fetch_end();
	vsock_free(&w->v);
	for (unsigned i = 0; i < w->opened; i++)
		close_fd(&w->host[i]);
}

ssize_t __real_io_send_some(int fd, const void *p, size_t len);
ssize_t __wrap_io_send_some(int fd, const void *p, size_t len);

ssize_t __wrap_io_send_some(int fd, const void *p, size_t len)
{
	ssize_t n = __real_io_send_some(fd, p, len);

	if (n > 0)
		fetch_copied(p, (size_t)n);
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;

	run(&w, (struct input){data, size}, false);
	run(&w, (struct input){data, size}, true);
	return 0;
}
