/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the hostile guest does to the queues of its devices. Half of the time it begins as a driver
 * would, and most chains are what a driver would make, or nothing behind the first check would ever
 * be reached; the rest is wrong in some place.
 */
#include "hostile.h"

#define STAGE      ARENA /* all rings of drivers that know their trade are in 16 pages here */
#define QUEUE_SIZE 8u

/* An address for a device: often good, often almost, often none. */
static uint64_t address(void)
{
	switch (any(14)) {
	case 0:
		return next();
	case 1:
		return MMIO_BASE + any(0x3000);
	case 2:
		return rom + any(0x10000);
	case 3:
		return RAM_END - any(64);
	case 4:
		return RAM_END + any(0x1000000);
	case 5:
		return IOAPIC + any(0x1000);
	case 6:
		return ~0ull - any(0x2000);
	case 7:
		return 0x100000000ull - any(0x40);
	case 8:
		return ARENA + any(ARENA_SIZE / 2); /* not aligned */
	default:
		return ARENA + 4096ull * any(ARENA_SIZE / 2 / 4096);
	}
}

static uint32_t length(void)
{
	static const uint32_t some[] = {0,   1,    15,       16,         44,
					512, 4096, 0x100000, 0x7fffffff, 0xffffffff};

	return any(3) ? some[any(sizeof(some) / sizeof(some[0]))] : (uint32_t)next();
}

static uint16_t size_of_queue(void)
{
	static const uint16_t some[] = {0, 1, 2, 3, 8, 64, 128, 256, 1024, 0x8000, 0xffff};

	return some[any(sizeof(some) / sizeof(some[0]))];
}

/* The head of a request to the disk. */
static void request(uint64_t at, uint32_t type)
{
	*(volatile uint32_t *)at = any(8) ? type : (uint32_t)next();
	*(volatile uint64_t *)(at + 8) = any(8) ? any(4096) : next();
}

/* A packet of vsock. */
static void packet(uint64_t at)
{
	*(volatile uint64_t *)at = any(8) ? GUEST_CID : next();            /* from */
	*(volatile uint64_t *)(at + 8) = any(8) ? VSOCK_CID_HOST : next(); /* to */
	*(volatile uint32_t *)(at + 16) = any(2) ? any(4) : (uint32_t)next();
	*(volatile uint32_t *)(at + 20) = any(2) ? GUEST_EGRESS_PORT : (uint32_t)next();
	*(volatile uint32_t *)(at + 24) = any(2) ? 0 : length();
	*(volatile uint16_t *)(at + 28) = any(8) ? VSOCK_TYPE_STREAM : (uint16_t)next();
	*(volatile uint16_t *)(at + 30) = (uint16_t)(any(4) ? any(9) : next());
}

/* The bytes of a descriptor table, of rings and of what they point at, as the guest writes them. */
static void scribble(void)
{
	uint64_t base = STAGE + 4096ull * any(16);

	for (int i = 0; i < 16; i++) {
		uint64_t at = base + 16ull * any(256);

		*(volatile uint64_t *)at = address();
		*(volatile uint32_t *)(at + 8) = length();
		*(volatile uint16_t *)(at + 12) = (uint16_t)(any(4) ? any(8) : next());
		*(volatile uint16_t *)(at + 14) = (uint16_t)(any(4) ? any(8) : next());
	}
	/* As a ring of available ones: index, and heads. */
	*(volatile uint16_t *)(base + 2) = (uint16_t)(any(2) ? any(16) : next());
	for (int i = 0; i < 8; i++)
		*(volatile uint16_t *)(base + 4 + 2 * any(128)) =
			(uint16_t)(any(3) ? any(8) : next());
	request(ARENA + 4096ull * any(ARENA_SIZE / 2 / 4096), any(16));
	packet(ARENA + 4096ull * any(ARENA_SIZE / 2 / 4096));
}

/* Where a driver that knows its trade has a queue: descriptors, and a page on, both rings. */
static uint64_t rings(uint64_t device, uint32_t q)
{
	return STAGE + 0x4000ull * (device == BLK ? VSOCK_QUEUES : q);
}

void begin_like_a_driver(uint64_t device)
{
	const uint32_t odd = any(2) ? 256 : 8;
	uint32_t queues = device == BLK ? 1 : VSOCK_QUEUES;

	set(device, VIRTIO_MMIO_STATUS, 0);
	set(device, VIRTIO_MMIO_STATUS, 1);
	set(device, VIRTIO_MMIO_STATUS, 3);
	for (uint32_t sel = 0; sel < 2; sel++) {
		set(device, VIRTIO_MMIO_DEVICE_FEATURES_SEL, sel);
		set(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, sel);
		set(device, VIRTIO_MMIO_DRIVER_FEATURES,
		    any(odd) ? reg(device, VIRTIO_MMIO_DEVICE_FEATURES) : (uint32_t)next());
	}
	set(device, VIRTIO_MMIO_STATUS, 11);
	for (uint32_t q = 0; q < queues + !any(odd); q++) {
		set(device, VIRTIO_MMIO_QUEUE_SEL, any(odd) ? q : (uint32_t)next());
		set(device, VIRTIO_MMIO_QUEUE_NUM, any(odd) ? QUEUE_SIZE : size_of_queue());
		set_address(device, VIRTIO_MMIO_QUEUE_DESC_LOW,
			    any(odd) ? rings(device, q) : address());
		set_address(device, VIRTIO_MMIO_QUEUE_DRIVER_LOW,
			    any(odd) ? rings(device, q) + 0x1000 : address());
		set_address(device, VIRTIO_MMIO_QUEUE_DEVICE_LOW,
			    any(odd) ? rings(device, q) + 0x2000 : address());
		if (any(odd)) /* or the device begins with what is there */
			*(volatile uint32_t *)(rings(device, q) + 0x1000) = 0;
		set(device, VIRTIO_MMIO_QUEUE_READY, any(odd) ? 1 : (uint32_t)next());
	}
	set(device, VIRTIO_MMIO_STATUS, any(odd) ? 15 : (uint32_t)next());
	if (reg(device, VIRTIO_MMIO_STATUS) == 15)
		count(device == BLK ? BLK_RUNS : VSOCK_RUNS);
}

static void describe(uint64_t table, uint32_t n, uint64_t at, uint32_t len, uint16_t flags)
{
	table += 16ull * (n % QUEUE_SIZE);
	*(volatile uint64_t *)table = at;
	*(volatile uint32_t *)(table + 8) = len;
	*(volatile uint16_t *)(table + 12) = flags;
	*(volatile uint16_t *)(table + 14) = (uint16_t)((n + 1) % QUEUE_SIZE);
}

/* A chain as a driver makes it, in the next place of its ring, about something or other. */
static void offer(uint64_t device, uint32_t q)
{
	const uint64_t table = rings(device, q), avail = table + 0x1000;
	const uint64_t at = ARENA + 0x10000ull + 0x2000ull * any(64);
	const uint16_t n = *(volatile uint16_t *)(avail + 2), way = any(2) ? VIRTQ_DESC_F_WRITE : 0;
	const uint32_t head = any(QUEUE_SIZE);

	if (device == BLK) {
		request(at, any(8) == 0 ? any(16) : way ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT);
		describe(table, head, at, VIRTIO_BLK_HDR_BYTES, VIRTQ_DESC_F_NEXT);
		describe(table, head + 1, at + 0x1000, any(8) ? 512 * any(16) : length(),
			 VIRTQ_DESC_F_NEXT | way);
		describe(table, head + 2, at + 64, 1, VIRTQ_DESC_F_WRITE);
	} else if (q == VSOCK_QUEUE_TX) {
		packet(at);
		describe(table, head, at, any(8) ? VSOCK_HDR_BYTES : length(), 0);
	} else {
		describe(table, head, at, any(8) ? 4096 : length(), VIRTQ_DESC_F_WRITE);
	}
	*(volatile uint16_t *)(avail + 4 + 2 * (n % QUEUE_SIZE)) = (uint16_t)head;
	__sync_synchronize();
	*(volatile uint16_t *)(avail + 2) = (uint16_t)(n + 1);
	__sync_synchronize();
}

void notify(uint64_t device)
{
	const uint32_t q = device == BLK ? 0 : any(VSOCK_QUEUES);

	set(device, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_INT_USED_RING);
	if (any(16) == 0)
		scribble();
	if (any(4))
		offer(device, q);
	set(device, VIRTIO_MMIO_QUEUE_NOTIFY, any(16) ? q : any(2) ? any(4) : (uint32_t)next());
	if (reg(device, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_INT_USED_RING)
		count(device == BLK ? BLK_CHAINS : VSOCK_CHAINS);
}
