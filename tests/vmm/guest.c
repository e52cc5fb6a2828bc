/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings of eight descriptors in guest memory, one request at a time; one receive
 * buffer, so that what a stream has more is fetched by the notification that offers
 * the buffer again.
 */
#include "guest.h"

#include "lib/cleanup.h"
#include "proto/guest.h"
#include "still.h"
#include "vmm/core/exit.h"
#include "vmm/core/machine.h"
#include "vmm/virtio/vsock_packet.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RING    8u
#define RINGS   (32u << 20) /* four queues, 64 KiB each */
#define BUFFERS (33u << 20)
#define RX_BUF  4096u
#define TX_BUF  (BUFFERS + 0x10000)
#define DISK_AT (BUFFERS + 0x40000) /* header, status, data behind each other */
#define DATA_AT (DISK_AT + 0x1000)
#define BLOB    (32u << 10)
#define CREDIT  (1u << 20)
#define COMPUTE (48u << 20) /* a page for each vCPU */
#define ENOUGH  64u         /* exits of each vCPU before a busy guest reports */
#define VECTOR  0x40u

static void mmio(struct vcpu *v, uint64_t at, uint32_t val)
{
	struct exit_reason why = {0};

	v->run->exit_reason = KVM_EXIT_MMIO;
	v->run->mmio.phys_addr = at;
	v->run->mmio.is_write = 1;
	v->run->mmio.len = sizeof(val);
	memcpy(v->run->mmio.data, &val, sizeof(val));
	(void)!exit_handle(v->machine, v, &why);
}

static void reg(struct vcpu *v, unsigned int dev, uint32_t off, uint32_t val)
{
	mmio(v, VM_MMIO_BASE + dev * VM_MMIO_STRIDE + off, val);
}

static uint8_t *mem(struct vcpu *v, uint64_t gpa, uint64_t len)
{
	uint8_t *p = gmem_slice(&v->machine->ram, gpa, len);

	if (!p)
		abort(); /* a mistake of this file */
	return p;
}

/* The line of a device, edge-triggered, to the first processor. */
static void route_irq(struct vcpu *v, unsigned int dev)
{
	unsigned int index = 0x10 + 2 * (VM_MMIO_GSI + dev);

	mmio(v, VM_IOAPIC_BASE, index);
	mmio(v, VM_IOAPIC_BASE + 0x10, VECTOR + dev);
}

static void start_device(struct vcpu *v, unsigned int dev, uint32_t features)
{
	route_irq(v, dev);
	reg(v, dev, VIRTIO_MMIO_STATUS, 0);
	reg(v, dev, VIRTIO_MMIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE);
	reg(v, dev, VIRTIO_MMIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	reg(v, dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	reg(v, dev, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_F_VERSION_1 >> 32);
	reg(v, dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	reg(v, dev, VIRTIO_MMIO_DRIVER_FEATURES, features);
	reg(v, dev, VIRTIO_MMIO_STATUS, 0xb);
}

static void start_queue(struct vcpu *v, unsigned int dev, unsigned int q, struct guest_queue *gq,
			unsigned int place)
{
	uint64_t at = RINGS + place * 0x10000ull;

	*gq = (struct guest_queue){.desc = at, .avail = at + 0x1000, .used = at + 0x2000};
	reg(v, dev, VIRTIO_MMIO_QUEUE_SEL, q);
	reg(v, dev, VIRTIO_MMIO_QUEUE_NUM, RING);
	reg(v, dev, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)gq->desc);
	reg(v, dev, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
	reg(v, dev, VIRTIO_MMIO_QUEUE_DRIVER_LOW, (uint32_t)gq->avail);
	reg(v, dev, VIRTIO_MMIO_QUEUE_DRIVER_HIGH, 0);
	reg(v, dev, VIRTIO_MMIO_QUEUE_DEVICE_LOW, (uint32_t)gq->used);
	reg(v, dev, VIRTIO_MMIO_QUEUE_DEVICE_HIGH, 0);
	reg(v, dev, VIRTIO_MMIO_QUEUE_READY, 1);
}

struct seg {
	uint64_t at;
	uint32_t len;
	uint16_t flags;
};

/* A chain from descriptor head on; n is small. */
static void add(struct vcpu *v, struct guest_queue *gq, uint16_t head, const struct seg *seg,
		uint16_t n)
{
	uint16_t idx = ++gq->avail_idx;

	for (uint16_t i = 0; i < n; i++) {
		struct {
			uint64_t at;
			uint32_t len;
			uint16_t flags, next;
		} d = {seg[i].at, seg[i].len, seg[i].flags, (uint16_t)(head + i + 1)};

		if (i + 1 < n)
			d.flags |= VIRTQ_DESC_F_NEXT;
		memcpy(mem(v, gq->desc + 16ull * (head + i), sizeof(d)), &d, sizeof(d));
	}
	memcpy(mem(v, gq->avail + 4 + 2ull * ((idx - 1) % RING), 2), &head, 2);
	memcpy(mem(v, gq->avail + 2, 2), &idx, 2);
}

/* The only chain; then the notification. */
static void offer(struct vcpu *v, unsigned int dev, unsigned int q, struct guest_queue *gq,
		  const struct seg *seg, uint16_t n)
{
	add(v, gq, 0, seg, n);
	reg(v, dev, VIRTIO_MMIO_QUEUE_NOTIFY, q);
}

/* Whether the device has given something back. */
static bool used(struct vcpu *v, struct guest_queue *gq)
{
	uint16_t idx;

	memcpy(&idx, mem(v, gq->used + 2, 2), 2);
	if (idx == gq->used_seen)
		return false;
	gq->used_seen++;
	return true;
}

/* Sleeps in this thread's jail. */
static void wait_ms(unsigned int ms)
{
	const struct timespec t = {.tv_nsec = 1000000L * ms};
	static uint32_t never;

	syscall(SYS_futex, &never, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
}

/* A request of at most one segment of data, its chain from descriptor head on; how many it took. */
static uint16_t add_disk(struct guest *g, struct vcpu *v, uint16_t head, uint32_t type,
			 uint32_t len)
{
	uint16_t to_guest = type == VIRTIO_BLK_T_IN ? VIRTQ_DESC_F_WRITE : 0;
	uint64_t at = DISK_AT + 0x100u * head;
	struct seg seg[3] = {{.at = at, .len = VIRTIO_BLK_HDR_BYTES}};
	uint8_t *request = mem(v, at, 0x100);
	uint16_t n = 1;

	memset(request, 0, 0x100);
	memcpy(request, &type, sizeof(type));
	request[0x80] = 0xff;
	if (len)
		seg[n++] = (struct seg){DATA_AT, len, to_guest};
	seg[n++] = (struct seg){at + 0x80, 1, VIRTQ_DESC_F_WRITE};
	add(v, &g->disk, head, seg, n);
	return n;
}

static bool disk_is_ok(struct vcpu *v, uint16_t head)
{
	return *mem(v, DISK_AT + 0x100u * head + 0x80, 1) == VIRTIO_BLK_S_OK;
}

/* It is carried out at once. */
static void disk(struct guest *g, struct vcpu *v, uint32_t type, uint32_t len)
{
	add_disk(g, v, 0, type, len);
	reg(v, MACHINE_DEV_BLK, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_BLK_QUEUE);
	if (!used(v, &g->disk) || !disk_is_ok(v, 0))
		g->wrong++;
}

/* A flush takes all that is done at once: what is behind it, and another flush, are the loop's. */
static void disk_later(struct guest *g, struct vcpu *v, uint32_t type, uint32_t len)
{
	uint16_t head = add_disk(g, v, 0, VIRTIO_BLK_T_FLUSH, 0), middle = head;
	unsigned int done = 0;

	head += add_disk(g, v, head, type, len);
	add_disk(g, v, head, VIRTIO_BLK_T_FLUSH, 0);
	reg(v, MACHINE_DEV_BLK, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_BLK_QUEUE);
	for (unsigned int i = 0; i < 5000 && done < 3; i++) {
		while (used(v, &g->disk))
			done++;
		if (done < 3)
			wait_ms(1);
	}
	if (done != 3 || !disk_is_ok(v, 0) || !disk_is_ok(v, middle) || !disk_is_ok(v, head))
		g->wrong++;
}

static void use_disk(struct guest *g, struct vcpu *v,
		     void (*request)(struct guest *g, struct vcpu *v, uint32_t type, uint32_t len))
{
	const uint32_t range[4] = {0, 0, LAYERS_CLUSTER / VIRTIO_BLK_SECTOR, 0};
	uint8_t *data = mem(v, DATA_AT, LAYERS_CLUSTER);

	memset(data, 'd', LAYERS_CLUSTER);
	request(g, v, VIRTIO_BLK_T_OUT, LAYERS_CLUSTER);
	memset(data, 0, LAYERS_CLUSTER);
	request(g, v, VIRTIO_BLK_T_IN, LAYERS_CLUSTER);
	g->wrong += data[0] != 'd' || data[LAYERS_CLUSTER - 1] != 'd';
	request(g, v, VIRTIO_BLK_T_FLUSH, 0);
	memcpy(data, range, sizeof(range));
	request(g, v, VIRTIO_BLK_T_DISCARD, sizeof(range));
}

static void offer_rx(struct guest *g, struct vcpu *v)
{
	const struct seg seg = {BUFFERS, VSOCK_HDR_BYTES + RX_BUF, VIRTQ_DESC_F_WRITE};

	offer(v, MACHINE_DEV_VSOCK, VSOCK_QUEUE_RX, &g->rx, &seg, 1);
}

/* Answers a packet: the header's addresses are turned round. */
static void answer(struct guest *g, struct vcpu *v, const struct vsock_hdr *to, uint16_t op,
		   uint32_t flags, uint32_t len)
{
	const struct vsock_hdr h = {.src_cid = to->dst_cid,
				    .dst_cid = to->src_cid,
				    .src_port = to->dst_port,
				    .dst_port = to->src_port,
				    .len = len,
				    .type = VSOCK_TYPE_STREAM,
				    .op = op,
				    .flags = flags,
				    .buf_alloc = CREDIT};
	const struct seg seg = {TX_BUF, VSOCK_HDR_BYTES + len, 0};

	vsock_hdr_pack(mem(v, TX_BUF, VSOCK_HDR_BYTES), &h);
	offer(v, MACHINE_DEV_VSOCK, VSOCK_QUEUE_TX, &g->tx, &seg, 1);
	/* A packet that came meanwhile can only be in the one buffer, which is ours. The device
	   keeps it if it is a short one, until we say that there is no other. */
	if (used(v, &g->tx))
		return;
	reg(v, MACHINE_DEV_VSOCK, VIRTIO_MMIO_QUEUE_NOTIFY, VSOCK_QUEUE_TX);
	if (!used(v, &g->tx))
		g->wrong++;
}

/* As an exit that takes long: the loop's thread comes to wait for it. */
static void hold_lock(struct machine *m)
{
	device_lock_vcpu(&m->lock);
	wait_ms(200);
	device_unlock(&m->lock);
}

static void take_data(struct guest *g, struct vcpu *v, const struct vsock_hdr *h)
{
	const uint8_t *data = mem(v, BUFFERS + VSOCK_HDR_BYTES, RX_BUF);
	uint8_t *out = mem(v, TX_BUF + VSOCK_HDR_BYTES, BLOB);

	if (data[0] == 'H')
		hold_lock(v->machine);
	if (data[0] == 'K') {
		v->run->immediate_exit = 1;
		g->wrong += vcpu_run(v) != -EINTR;
	}
	if (data[0] == 'D') {
		use_disk(g, v, disk);
		use_disk(g, v, disk_later);
	}
	switch (data[0]) {
	case 'S':
		answer(g, v, h, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_RCV, 0);
		break;
	case 'R':
		answer(g, v, h, VSOCK_OP_RST, 0, 0);
		break;
	case 'B':
	case 'E':
		memset(out, data[0], BLOB);
		answer(g, v, h, VSOCK_OP_RW, 0, BLOB);
		if (data[0] == 'E')
			answer(g, v, h, VSOCK_OP_RST, 0, 0);
		break;
	default:
		memcpy(out, data, h->len);
		answer(g, v, h, VSOCK_OP_RW, 0, h->len);
		break;
	}
}

static void take_packets(struct guest *g, struct vcpu *v)
{
	while (used(v, &g->rx)) {
		struct vsock_hdr h;

		vsock_hdr_unpack(mem(v, BUFFERS, VSOCK_HDR_BYTES), &h);
		if (h.op == VSOCK_OP_REQUEST)
			answer(g, v, &h, VSOCK_OP_RESPONSE, 0, 0);
		else if (h.op == VSOCK_OP_RW && h.len)
			take_data(g, v, &h);
		else if (h.op == VSOCK_OP_SHUTDOWN)
			answer(g, v, &h, VSOCK_OP_RST, 0, 0);
		offer_rx(g, v);
	}
}

static void start_disk(struct guest *g, struct vcpu *v)
{
	start_device(v, MACHINE_DEV_BLK, VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_DISCARD);
	start_queue(v, MACHINE_DEV_BLK, VIRTIO_BLK_QUEUE, &g->disk, 0);
	reg(v, MACHINE_DEV_BLK, VIRTIO_MMIO_STATUS, 0xf);
}

int guest_run(struct guest *g, struct vcpu *v)
{
	const struct timespec moment = {.tv_nsec = 500000};

	if (v->run->immediate_exit)
		return vcpu_run(v);
	if (!g->started) {
		g->started = true;
		start_disk(g, v);
		use_disk(g, v, disk);
		start_device(v, MACHINE_DEV_VSOCK, 0);
		start_queue(v, MACHINE_DEV_VSOCK, VSOCK_QUEUE_RX, &g->rx, 1);
		start_queue(v, MACHINE_DEV_VSOCK, VSOCK_QUEUE_TX, &g->tx, 2);
		start_queue(v, MACHINE_DEV_VSOCK, VSOCK_QUEUE_EVENT, &g->event, 3);
		reg(v, MACHINE_DEV_VSOCK, VIRTIO_MMIO_STATUS, 0xf);
		offer_rx(g, v);
	}
	take_packets(g, v);
	syscall(SYS_futex, v->run, FUTEX_WAIT_PRIVATE, 0, &moment, NULL, 0);
	return -EINTR;
}

/* Leaves the guest with a write to a register of a device, which the caller carries out. */
static int exit_by_reg(struct vcpu *v, unsigned int dev, uint32_t off, uint32_t val)
{
	v->run->exit_reason = KVM_EXIT_MMIO;
	v->run->mmio.phys_addr = VM_MMIO_BASE + dev * VM_MMIO_STRIDE + off;
	v->run->mmio.is_write = 1;
	v->run->mmio.len = sizeof(val);
	memcpy(v->run->mmio.data, &val, sizeof(val));
	return 0;
}

static int exit_by_status(struct vcpu *v, uint32_t val)
{
	v->run->exit_reason = KVM_EXIT_IO;
	v->run->io.direction = KVM_EXIT_IO_OUT;
	v->run->io.port = GUEST_STATUS_PORT;
	v->run->io.size = sizeof(val);
	v->run->io.count = 1;
	v->run->io.data_offset = 4096; /* as KVM's */
	memcpy((uint8_t *)v->run + v->run->io.data_offset, &val, sizeof(val));
	return 0;
}

static bool all_have_done_enough(const struct machine *m)
{
	for (unsigned int i = 0; i < m->nvcpus; i++)
		if (atomic_load_explicit(&m->vcpus[i].exits, memory_order_relaxed) < ENOUGH)
			return false;
	return true;
}

/* Another round: what it holds is read; when that is done, something new is written there. */
static int busy_request(struct guest *g, struct vcpu *v)
{
	uint32_t place = g->rounds * 7 % GUEST_PLACES, type = VIRTIO_BLK_T_IN;
	uint64_t sector = place * (LAYERS_CLUSTER / VIRTIO_BLK_SECTOR);

	if (g->flight == GUEST_READS) {
		type = VIRTIO_BLK_T_OUT;
		g->holds[place] = (uint8_t)(g->rounds % 251 + 1);
		memset(mem(v, DATA_AT, 4096), g->holds[place], 4096);
	} else {
		memset(mem(v, DATA_AT, 4096), 0xee, 4096);
	}
	g->flight = type == VIRTIO_BLK_T_OUT ? GUEST_WRITES : GUEST_READS;
	add_disk(g, v, 0, type, 4096);
	memcpy(mem(v, DISK_AT + 8, sizeof(sector)), &sector, sizeof(sector));
	return exit_by_reg(v, MACHINE_DEV_BLK, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_BLK_QUEUE);
}

static void busy_take(struct guest *g, struct vcpu *v)
{
	uint8_t want = g->holds[g->rounds * 7 % GUEST_PLACES];
	const uint8_t *data = mem(v, DATA_AT, 4096);

	g->wrong += !disk_is_ok(v, 0);
	if (g->flight == GUEST_READS)
		g->wrong += data[0] != want || memcmp(data, data + 1, 4095) != 0;
	else
		g->rounds++;
}

int guest_busy(struct guest *g, struct vcpu *v)
{
	if (v->run->immediate_exit)
		return vcpu_run(v);
	if (!g->started) {
		g->started = true;
		start_disk(g, v);
	}
	/* In flight across a fork as well: the device, or the copy's, carries it out later. */
	if (g->flight != GUEST_NOTHING && !used(v, &g->disk)) {
		wait_ms(1);
		return -EINTR;
	}
	if (g->flight != GUEST_NOTHING)
		busy_take(g, v);
	if (v->machine->nstatus == 0 && all_have_done_enough(v->machine)) {
		g->flight = GUEST_NOTHING;
		return exit_by_status(v, GUEST_STATUS_READY);
	}
	return busy_request(g, v);
}

int guest_compute(struct vcpu *v, _Atomic uint32_t *wrong)
{
	uint64_t *x = (uint64_t *)(void *)mem(v, COMPUTE + 4096ull * v->id, 4096);

	if (v->run->immediate_exit)
		return vcpu_run(v);
	/* Each word is what follows from the one before, in a copy as well. */
	for (unsigned int i = 1; i < 512; i++) {
		uint64_t next = x[i - 1] * 6364136223846793005u + i;

		if (x[0] && x[i] != next)
			(*wrong)++;
		x[i] = x[0] ? next : 0;
	}
	x[0]++;
	for (unsigned int i = 1; i < 512; i++)
		x[i] = x[i - 1] * 6364136223846793005u + i;
	v->run->exit_reason = KVM_EXIT_INTR;
	return 0;
}
