/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A driver of both devices, for a guest that has left them in any state. It
 * waits for as long as it takes: who runs the guest gives it its time.
 */
#include "hostile.h"

#define DESC   (ARENA + ARENA_SIZE / 2)
#define AVAIL  (DESC + 0x1000)
#define USED   (DESC + 0x2000)
#define HEADER (DESC + 0x3000)
#define STATUS (DESC + 0x3100)
#define DATA   (DESC + 0x4000)

#define QUEUE_SIZE 8u

/* Resets a device and brings it up; 0, or which step did not work. */
static uint32_t driver_start(uint64_t device, uint32_t queues, uint32_t features)
{
	set(device, VIRTIO_MMIO_STATUS, 0);
	if (reg(device, VIRTIO_MMIO_MAGIC_VALUE) != VIRTIO_MMIO_MAGIC ||
	    reg(device, VIRTIO_MMIO_STATUS))
		return 1;
	set(device, VIRTIO_MMIO_STATUS, 1);
	set(device, VIRTIO_MMIO_STATUS, 3);
	set(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	set(device, VIRTIO_MMIO_DRIVER_FEATURES, features);
	set(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	set(device, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	set(device, VIRTIO_MMIO_STATUS, 11);
	if (reg(device, VIRTIO_MMIO_STATUS) != 11)
		return 2;
	for (uint32_t q = 0; q < queues; q++) {
		set(device, VIRTIO_MMIO_QUEUE_SEL, q);
		set(device, VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE);
		set_address(device, VIRTIO_MMIO_QUEUE_DESC_LOW, DESC + 0x10000ull * q);
		set_address(device, VIRTIO_MMIO_QUEUE_DRIVER_LOW, AVAIL + 0x10000ull * q);
		set_address(device, VIRTIO_MMIO_QUEUE_DEVICE_LOW, USED + 0x10000ull * q);
		set(device, VIRTIO_MMIO_QUEUE_READY, 1);
	}
	set(device, VIRTIO_MMIO_STATUS, 15);
	return reg(device, VIRTIO_MMIO_STATUS) == 15 ? 0 : 3;
}

static void descriptor(uint32_t q, uint32_t n, uint64_t a, uint32_t len, uint16_t flags,
		       uint16_t link)
{
	uint64_t at = DESC + 0x10000ull * q + 16 * n;

	*(volatile uint64_t *)at = a;
	*(volatile uint32_t *)(at + 8) = len;
	*(volatile uint16_t *)(at + 12) = flags;
	*(volatile uint16_t *)(at + 14) = link;
}

/* Makes the chain that begins with descriptor 0 the nth of its queue. */
static void offer(uint64_t device, uint32_t q, uint16_t n)
{
	uint64_t avail = AVAIL + 0x10000ull * q;

	*(volatile uint16_t *)(avail + 4 + 2 * (n % 8)) = 0;
	__sync_synchronize();
	*(volatile uint16_t *)(avail + 2) = (uint16_t)(n + 1);
	__sync_synchronize();
	set(device, VIRTIO_MMIO_QUEUE_NOTIFY, q);
}

static void await_used(uint32_t q, uint16_t n)
{
	while (*(volatile uint16_t *)(USED + 0x10000ull * q + 2) != (uint16_t)(n + 1))
		__builtin_ia32_pause();
	__sync_synchronize();
}

/* A sector to the disk or from it; the status byte. */
static uint8_t disk(uint32_t type, uint64_t sector, uint16_t n)
{
	*(volatile uint32_t *)HEADER = type;
	*(volatile uint32_t *)(HEADER + 4) = 0;
	*(volatile uint64_t *)(HEADER + 8) = sector;
	*(volatile uint8_t *)STATUS = 0xee;
	descriptor(0, 0, HEADER, VIRTIO_BLK_HDR_BYTES, VIRTQ_DESC_F_NEXT, 1);
	descriptor(0, 1, DATA, VIRTIO_BLK_SECTOR,
		   VIRTQ_DESC_F_NEXT | (type == VIRTIO_BLK_T_IN ? VIRTQ_DESC_F_WRITE : 0), 2);
	descriptor(0, 2, STATUS, 1, VIRTQ_DESC_F_WRITE, 0);
	offer(BLK, 0, n);
	await_used(0, n);
	return *(volatile uint8_t *)STATUS;
}

/*
 * One packet each way: asks for a connection to a port of the host where nobody listens, and must
 * be refused by a packet that is right in each part. 0, or which was not.
 */
static uint32_t vsock(void)
{
	const uint64_t rx = DATA, tx = DATA + 0x10000;
	const uint64_t cid = reg(VSOCK, VIRTIO_MMIO_CONFIG);

	for (uint64_t i = 0; i < VSOCK_HDR_BYTES; i++)
		*(volatile uint8_t *)(tx + i) = 0;
	*(volatile uint64_t *)tx = cid;
	*(volatile uint64_t *)(tx + 8) = VSOCK_CID_HOST;
	*(volatile uint32_t *)(tx + 16) = 1234;
	*(volatile uint32_t *)(tx + 20) = 99;
	*(volatile uint16_t *)(tx + 28) = VSOCK_TYPE_STREAM;
	*(volatile uint16_t *)(tx + 30) = VSOCK_OP_REQUEST;
	descriptor(VSOCK_QUEUE_RX, 0, rx, 4096, VIRTQ_DESC_F_WRITE, 0);
	descriptor(VSOCK_QUEUE_TX, 0, tx, VSOCK_HDR_BYTES, 0, 0);
	offer(VSOCK, VSOCK_QUEUE_RX, 0);
	offer(VSOCK, VSOCK_QUEUE_TX, 0);
	await_used(VSOCK_QUEUE_TX, 0);
	await_used(VSOCK_QUEUE_RX, 0);
	if (*(volatile uint32_t *)(USED + 8) != VSOCK_HDR_BYTES)
		return 1;
	if (*(volatile uint64_t *)rx != VSOCK_CID_HOST || *(volatile uint64_t *)(rx + 8) != cid)
		return 2;
	if (*(volatile uint32_t *)(rx + 16) != 99 || *(volatile uint32_t *)(rx + 20) != 1234)
		return 3;
	if (*(volatile uint32_t *)(rx + 24) != 0 ||
	    *(volatile uint16_t *)(rx + 28) != VSOCK_TYPE_STREAM)
		return 4;
	return *(volatile uint16_t *)(rx + 30) == VSOCK_OP_RST ? 0 : 5;
}

uint32_t driver_works(void)
{
	uint32_t rc;

	for (uint64_t at = DESC; at < DESC + 0x40000; at += 8)
		*(volatile uint64_t *)at = 0;
	rc = driver_start(BLK, 1, VIRTIO_BLK_F_FLUSH);
	if (rc)
		return 0x200 + rc;
	for (uint64_t i = 0; i < VIRTIO_BLK_SECTOR; i += 8)
		*(volatile uint64_t *)(DATA + i) = 0x1122334455667788ull + i;
	if (disk(VIRTIO_BLK_T_OUT, 77, 0) != VIRTIO_BLK_S_OK)
		return 0x210;
	for (uint64_t i = 0; i < VIRTIO_BLK_SECTOR; i += 8)
		*(volatile uint64_t *)(DATA + i) = 0;
	if (disk(VIRTIO_BLK_T_IN, 77, 1) != VIRTIO_BLK_S_OK)
		return 0x211;
	for (uint64_t i = 0; i < VIRTIO_BLK_SECTOR; i += 8)
		if (*(volatile uint64_t *)(DATA + i) != 0x1122334455667788ull + i)
			return 0x212;
	for (uint64_t at = DESC; at < DESC + 0x40000; at += 8)
		*(volatile uint64_t *)at = 0;
	rc = driver_start(VSOCK, VSOCK_QUEUES, 0);
	if (rc)
		return 0x220 + rc;
	rc = vsock();
	return rc ? 0x228 + rc : 0;
}

/* The packets of a flood, by turns: none has a connection, so that each is answered by an RST. */
static void flood_packet(uint64_t at, uint64_t cid, uint32_t n)
{
	static const uint16_t ops[QUEUE_SIZE] = {
		VSOCK_OP_REQUEST,        VSOCK_OP_RW,       VSOCK_OP_CREDIT_UPDATE,
		VSOCK_OP_CREDIT_REQUEST, VSOCK_OP_SHUTDOWN, VSOCK_OP_REQUEST,
		VSOCK_OP_RESPONSE,       VSOCK_OP_RW,
	};

	for (uint64_t i = 0; i < VSOCK_HDR_BYTES; i++)
		*(volatile uint8_t *)(at + i) = 0;
	*(volatile uint64_t *)at = cid;
	*(volatile uint64_t *)(at + 8) = VSOCK_CID_HOST;
	*(volatile uint32_t *)(at + 16) = 1000 + n;
	*(volatile uint32_t *)(at + 20) = 99;
	*(volatile uint16_t *)(at + 28) = VSOCK_TYPE_STREAM;
	*(volatile uint16_t *)(at + 30) = ops[n];
}

/* Offers all descriptors of a queue again, each a chain of its own. */
static void offer_all(uint32_t q, uint16_t *n)
{
	uint64_t avail = AVAIL + 0x10000ull * q;

	for (uint16_t i = 0; i < QUEUE_SIZE; i++)
		*(volatile uint16_t *)(avail + 4 + 2 * i) = i;
	*n = (uint16_t)(*n + QUEUE_SIZE);
	__sync_synchronize();
	*(volatile uint16_t *)(avail + 2) = *n;
	__sync_synchronize();
	set(VSOCK, VIRTIO_MMIO_QUEUE_NOTIFY, q);
}

uint32_t driver_floods(void)
{
	const uint64_t rx = DATA, tx = DATA + 0x10000;
	uint16_t rx_n = 0, tx_n = 0;
	uint32_t rc = driver_start(VSOCK, VSOCK_QUEUES, 0);
	uint64_t cid = reg(VSOCK, VIRTIO_MMIO_CONFIG);

	if (rc)
		return 0x240 + rc;
	for (uint32_t i = 0; i < QUEUE_SIZE; i++) {
		flood_packet(tx + 64 * i, cid, i);
		descriptor(VSOCK_QUEUE_TX, i, tx + 64 * i, VSOCK_HDR_BYTES, 0, 0);
		descriptor(VSOCK_QUEUE_RX, i, rx + 0x1000 * i, 0x1000, VIRTQ_DESC_F_WRITE, 0);
	}
	for (uint32_t packets = 0;; packets += QUEUE_SIZE) {
		for (uint32_t i = 0; i < QUEUE_SIZE; i++)
			*(volatile uint16_t *)(rx + 0x1000 * i + 30) = 0;
		offer_all(VSOCK_QUEUE_RX, &rx_n);
		offer_all(VSOCK_QUEUE_TX, &tx_n);
		await_used(VSOCK_QUEUE_TX, (uint16_t)(tx_n - 1));
		await_used(VSOCK_QUEUE_RX, (uint16_t)(rx_n - 1));
		for (uint32_t i = 0; i < QUEUE_SIZE; i++)
			if (*(volatile uint16_t *)(rx + 0x1000 * i + 30) != VSOCK_OP_RST)
				return 0x248;
		if (packets % 4096 == 0)
			say("\nflooded ", packets);
	}
}
