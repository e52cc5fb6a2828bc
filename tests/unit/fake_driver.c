/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See fake_driver.h. RAM: queues from 0x1000 on, 16 KiB each; receive buffers
 * from 1 MiB on; transmit slots of 68 KiB from 2 MiB on.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "../virtio_driver.h"
#include "fake_driver.h"
#include "lib/io.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define TX_SLOTS 16u
#define TX_BYTES (68u << 10)
#define TX_DESCS (FAKE_QUEUE / TX_SLOTS)

static void raise_irq(void *arg)
{
	struct fake *f = arg;

	f->irqs++;
	pthread_cond_signal(&f->irq);
}

static void report(struct fake *f, uint32_t cookie, enum fake_report r)
{
	assert_true(cookie < FAKE_COOKIES);
	f->report[cookie] = r;
	f->connects[cookie] += r == FAKE_CONNECTED;
	f->ends[cookie] += r != FAKE_CONNECTED;
}

static void on_connected(void *arg, uint32_t cookie)
{
	report(arg, cookie, FAKE_CONNECTED);
}

static void on_refused(void *arg, uint32_t cookie, int err)
{
	report(arg, cookie, FAKE_REFUSED);
	((struct fake *)arg)->refused_with[cookie] = err;
}

static void on_closed(void *arg, uint32_t cookie)
{
	report(arg, cookie, FAKE_CLOSED);
}

static void on_asked(void *arg)
{
	((struct fake *)arg)->asks++;
}

static void on_events(struct loop_src *src, uint32_t events)
{
	struct fake *f = src->arg;

	(void)events;
	pthread_mutex_lock(&f->lock);
	f->wakeups++;
	vsock_handle_events(&f->v);
	pthread_mutex_unlock(&f->lock);
}

void fake_init(struct fake *f)
{
	const struct virtio_host host = {.raise_irq = raise_irq, .arg = f};
	const struct vsock_events events = {on_connected, on_refused, on_closed, on_asked, f};

	memset(f, 0, sizeof(*f));
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->irq, NULL);
	f->mem.size = FAKE_RAM;
	f->mem.base = aligned_alloc(4096, FAKE_RAM);
	assert_non_null(f->mem.base);
	memset(f->mem.base, 0, FAKE_RAM);
	f->rx_area = 1u << 20;
	f->tx_area = 2u << 20;
	assert_int_equal(vsock_init(&f->v, &f->mem, &host, &events), 0);
	f->dev = &f->v.dev;
	assert_int_equal(loop_init(&f->loop), 0);
	f->src = (struct loop_src){.fn = on_events, .arg = f};
	assert_int_equal(loop_add(&f->loop, &f->src, vsock_event_fd(&f->v), EPOLLIN), 0);
}

void fake_free(struct fake *f)
{
	loop_del(&f->src);
	loop_free(&f->loop);
	vsock_free(&f->v);
	free(f->mem.base);
	pthread_cond_destroy(&f->irq);
	pthread_mutex_destroy(&f->lock);
}

uint8_t *fake_ptr(struct fake *f, uint64_t gpa)
{
	assert_true(gpa < FAKE_RAM);
	return f->mem.base + gpa;
}

uint32_t fake_read(struct fake *f, uint32_t reg)
{
	uint32_t v;

	virtio_mmio_read(f->dev, reg, &v, sizeof(v));
	return v;
}

void fake_write(struct fake *f, uint32_t reg, uint32_t v)
{
	driver_write(f->dev, reg, v);
}

void fake_negotiate(struct fake *f)
{
	driver_negotiate(f->dev, 0);
	assert_int_equal(fake_read(f, VIRTIO_MMIO_STATUS), 0xb);
}

void fake_setup_queue(struct fake *f, unsigned q, uint16_t size)
{
	struct fake_queue *fq = &f->q[q];

	*fq = (struct fake_queue){
		.desc = 0x1000 + q * 0x4000,
		.avail = 0x2000 + q * 0x4000,
		.used = 0x3000 + q * 0x4000,
	};
	memset(fake_ptr(f, fq->desc), 0, 0x4000);
	fake_write(f, VIRTIO_MMIO_QUEUE_SEL, q);
	fake_write(f, VIRTIO_MMIO_QUEUE_NUM, size);
	fake_write(f, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)fq->desc);
	fake_write(f, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
	fake_write(f, VIRTIO_MMIO_QUEUE_DRIVER_LOW, (uint32_t)fq->avail);
	fake_write(f, VIRTIO_MMIO_QUEUE_DRIVER_HIGH, 0);
	fake_write(f, VIRTIO_MMIO_QUEUE_DEVICE_LOW, (uint32_t)fq->used);
	fake_write(f, VIRTIO_MMIO_QUEUE_DEVICE_HIGH, 0);
	fake_write(f, VIRTIO_MMIO_QUEUE_READY, 1);
}

void fake_start(struct fake *f)
{
	fake_negotiate(f);
	f->tx_next = 0;
	for (unsigned q = 0; q < VSOCK_QUEUES; q++)
		fake_setup_queue(f, q, FAKE_QUEUE);
	fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(fake_read(f, VIRTIO_MMIO_STATUS), 0xf);
	for (unsigned i = 0; i < fake_rx_slots(f); i++)
		fake_post_rx(f, i);
	fake_kick(f, VSOCK_QUEUE_RX);
}

void fake_desc(struct fake *f, unsigned q, uint16_t i, uint64_t addr, uint32_t len, uint16_t flags,
	       uint16_t next)
{
	uint8_t *p = fake_ptr(f, f->q[q].desc + 16u * i);

	memcpy(p, &addr, 8);
	memcpy(p + 8, &len, 4);
	memcpy(p + 12, &flags, 2);
	memcpy(p + 14, &next, 2);
}

void fake_avail(struct fake *f, unsigned q, uint16_t head)
{
	struct fake_queue *fq = &f->q[q];
	uint8_t *p = fake_ptr(f, fq->avail);

	memcpy(p + 4 + 2 * (fq->avail_idx % FAKE_QUEUE), &head, 2);
	fq->avail_idx++;
	memcpy(p + 2, &fq->avail_idx, 2);
}

void fake_avail_flags(struct fake *f, unsigned q, uint16_t flags)
{
	memcpy(fake_ptr(f, f->q[q].avail), &flags, 2);
}

void fake_chain(struct fake *f, unsigned q, uint16_t first_desc, const struct fake_seg *seg,
		unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		unsigned flags = (i + 1 < n ? VIRTQ_DESC_F_NEXT : 0) |
				 (seg[i].write ? VIRTQ_DESC_F_WRITE : 0);

		fake_desc(f, q, (uint16_t)(first_desc + i), seg[i].addr, seg[i].len,
			  (uint16_t)flags, (uint16_t)(first_desc + i + 1));
	}
	fake_avail(f, q, first_desc);
}

bool fake_used(struct fake *f, unsigned q, uint32_t *id, uint32_t *len)
{
	struct fake_queue *fq = &f->q[q];
	uint8_t *p = fake_ptr(f, fq->used);
	uint16_t idx;

	memcpy(&idx, p + 2, 2);
	if (idx == fq->used_seen)
		return false;
	p += 4 + 8 * (fq->used_seen % FAKE_QUEUE);
	memcpy(id, p, 4);
	memcpy(len, p + 4, 4);
	fq->used_seen++;
	return true;
}

void fake_kick(struct fake *f, unsigned q)
{
	fake_write(f, VIRTIO_MMIO_QUEUE_NOTIFY, q);
}

unsigned fake_rx_slots(const struct fake *f)
{
	static const unsigned descs[] = {
		[FAKE_RX_SPLIT] = 2, [FAKE_RX_SINGLE] = 1, [FAKE_RX_SHREDS] = 4};

	return FAKE_QUEUE / descs[f->layout];
}

void fake_post_rx(struct fake *f, unsigned slot)
{
	uint64_t at = f->rx_area + (uint64_t)slot * FAKE_RX_BUF;
	unsigned per = FAKE_QUEUE / fake_rx_slots(f);
	static const uint32_t cut[][4] = {
		[FAKE_RX_SPLIT] = {VSOCK_HDR_BYTES, FAKE_RX_BUF - VSOCK_HDR_BYTES},
		[FAKE_RX_SINGLE] = {FAKE_RX_BUF},
		[FAKE_RX_SHREDS] = {7, 40, 100, FAKE_RX_BUF - 147},
	};
	struct fake_seg seg[4];

	for (unsigned i = 0; i < per; i++) {
		seg[i] = (struct fake_seg){at, cut[f->layout][i], true};
		at += seg[i].len;
	}
	fake_chain(f, VSOCK_QUEUE_RX, (uint16_t)(slot * per), seg, per);
}

bool fake_rx(struct fake *f, struct vsock_hdr *h, uint8_t *data, bool repost)
{
	unsigned per = FAKE_QUEUE / fake_rx_slots(f);
	const uint8_t *p;
	uint32_t id, len;

	if (!fake_used(f, VSOCK_QUEUE_RX, &id, &len))
		return false;
	assert_int_equal(id % per, 0);
	p = fake_ptr(f, f->rx_area + (uint64_t)(id / per) * FAKE_RX_BUF);
	vsock_hdr_unpack(p, h);
	assert_int_equal(len, VSOCK_HDR_BYTES + h->len);
	assert_true(len <= FAKE_RX_BUF);
	assert_int_equal(h->dst_cid, VSOCK_GUEST_CID);
	assert_int_equal(h->type, VSOCK_TYPE_STREAM);
	if (data)
		memcpy(data, p + VSOCK_HDR_BYTES, h->len);
	if (repost) {
		fake_post_rx(f, id / per);
		fake_kick(f, VSOCK_QUEUE_RX);
	}
	return true;
}

void fake_expect(struct fake *f, struct vsock_hdr *h, enum vsock_op op)
{
	assert_true(fake_rx(f, h, NULL, true));
	assert_int_equal(h->op, op);
}

bool fake_tx_hdr(struct fake *f, const struct vsock_hdr *h, const void *data, unsigned pieces)
{
	struct fake_seg seg[TX_DESCS];
	uint32_t id, len, total = VSOCK_HDR_BYTES + (data ? h->len : 0);
	unsigned slot = f->tx_next % TX_SLOTS;
	uint64_t at = f->tx_area + (uint64_t)slot * TX_BYTES;

	while (fake_used(f, VSOCK_QUEUE_TX, &id, &len))
		;
	if ((uint16_t)(f->q[VSOCK_QUEUE_TX].avail_idx - f->q[VSOCK_QUEUE_TX].used_seen) >= TX_SLOTS)
		return false;
	assert_true(pieces >= 1 && pieces <= TX_DESCS && total <= TX_BYTES);
	vsock_hdr_pack(fake_ptr(f, at), h);
	if (data)
		memcpy(fake_ptr(f, at) + VSOCK_HDR_BYTES, data, h->len);
	/* One piece is header and data together; more cut the whole at odd places. */
	for (unsigned i = 0; i < pieces; i++) {
		uint32_t part = i + 1 < pieces ? total / (pieces + 1) + i : total;

		if (part > total)
			part = total;
		seg[i] = (struct fake_seg){at, part, false};
		at += part;
		total -= part;
	}
	fake_chain(f, VSOCK_QUEUE_TX, (uint16_t)(slot * TX_DESCS), seg, pieces);
	f->tx_next++;
	fake_kick(f, VSOCK_QUEUE_TX);
	return true;
}

bool fake_tx(struct fake *f, const struct fake_conn *c, enum vsock_op op, uint32_t flags,
	     const void *data, uint32_t len)
{
	const struct vsock_hdr h = {
		.src_cid = VSOCK_GUEST_CID,
		.dst_cid = VSOCK_CID_HOST,
		.src_port = c->guest_port,
		.dst_port = c->host_port,
		.len = len,
		.type = VSOCK_TYPE_STREAM,
		.op = (uint16_t)op,
		.flags = flags,
		.buf_alloc = c->buf_alloc,
		.fwd_cnt = c->fwd_cnt,
	};

	return fake_tx_hdr(f, &h, data, 1 + f->tx_next % 5);
}

unsigned fake_turn(struct fake *f)
{
	unsigned before = f->wakeups;

	assert_int_equal(loop_run_once(&f->loop, 0), 0);
	return f->wakeups - before;
}

int fake_connect_start(struct fake *f, uint32_t guest_port, uint32_t cookie)
{
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(io_set_nonblock(sv[0], 1), 0);
	assert_int_equal(vsock_connect(&f->v, guest_port, sv[1], cookie), 0);
	return sv[0];
}

int fake_connect(struct fake *f, struct fake_conn *c, uint32_t cookie)
{
	struct vsock_hdr h;
	int fd;

	if (!c->guest_port)
		c->guest_port = 5555;
	if (!c->buf_alloc)
		c->buf_alloc = 256u << 10;
	fd = fake_connect_start(f, c->guest_port, cookie);
	fake_expect(f, &h, VSOCK_OP_REQUEST);
	assert_int_equal(h.src_cid, VSOCK_CID_HOST);
	assert_int_equal(h.dst_port, c->guest_port);
	assert_true(h.src_port >= VSOCK_PORT_FIRST);
	c->host_port = h.src_port;
	c->peer_alloc = h.buf_alloc;
	c->peer_fwd = h.fwd_cnt;
	assert_true(fake_tx(f, c, VSOCK_OP_RESPONSE, 0, NULL, 0));
	assert_int_equal(f->report[cookie], FAKE_CONNECTED);
	return fd;
}

int fake_setup(void **state)
{
	struct fake *f = malloc(sizeof(*f));

	fake_init(f);
	*state = f;
	return 0;
}

int fake_teardown(void **state)
{
	fake_free(*state);
	free(*state);
	return 0;
}

uint8_t fake_pattern(uint64_t i)
{
	return (uint8_t)((i * 2654435761u) >> 13 ^ i);
}

void fake_fill(uint8_t *p, uint64_t from, size_t len)
{
	for (size_t i = 0; i < len; i++)
		p[i] = fake_pattern(from + i);
}

void fake_check(const uint8_t *p, uint64_t from, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != fake_pattern(from + i))
			fail_msg("byte %llu is wrong", (unsigned long long)(from + i));
}

void fake_assert_quiet(struct fake *f)
{
	for (int i = 0; i < 4; i++)
		fake_turn(f); /* edges that are under way */
	for (int i = 0; i < 8; i++)
		assert_int_equal(fake_turn(f), 0);
}

void fake_turns(struct fake *f)
{
	for (int i = 0; i < 4; i++)
		fake_turn(f);
}

void fake_assert_eof(int fd)
{
	char c;

	assert_int_equal(io_read_some(fd, &c, 1), 0);
}

void fake_assert_ended(int fd)
{
	char c;
	ssize_t n = io_read_some(fd, &c, 1);

	assert_true(n == 0 || n == -ECONNRESET);
}

void fake_assert_no_packet(struct fake *f)
{
	struct vsock_hdr h;

	assert_false(fake_rx(f, &h, NULL, true));
}

void fake_guest_sees(struct fake_conn *c, const struct vsock_hdr *h)
{
	assert_int_equal(h->src_port, c->host_port);
	c->peer_alloc = h->buf_alloc;
	c->peer_fwd = h->fwd_cnt;
	assert_true(c->tx_cnt - c->peer_fwd <= c->peer_alloc);
}

size_t fake_drain(int fd)
{
	static uint8_t buf[64 << 10];
	size_t sum = 0;
	ssize_t n;

	while ((n = io_read_some(fd, buf, sizeof(buf))) > 0)
		sum += (size_t)n;
	return sum;
}
