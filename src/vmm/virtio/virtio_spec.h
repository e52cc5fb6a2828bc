/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers of the virtio specification, version 1.2 (OASIS, 2022), as far as
 * this VMM speaks it. Section numbers are of that document. Nothing but
 * constants; all fields on the wire and in guest memory are little-endian.
 */
#pragma once

#include <stdint.h>

/* 2.1 Device Status Field */
#define VIRTIO_STATUS_ACKNOWLEDGE 0x01u
#define VIRTIO_STATUS_DRIVER      0x02u
#define VIRTIO_STATUS_DRIVER_OK   0x04u
#define VIRTIO_STATUS_FEATURES_OK 0x08u
#define VIRTIO_STATUS_NEEDS_RESET 0x40u
#define VIRTIO_STATUS_FAILED      0x80u

/* 6 Reserved Feature Bits. INDIRECT_DESC (28) and EVENT_IDX (29) are never offered. */
#define VIRTIO_F_VERSION_1 (1ull << 32)

/* 2.7 Split Virtqueues: alignment and size of the three areas */
#define VIRTQ_DESC_ALIGN     16u
#define VIRTQ_AVAIL_ALIGN    2u
#define VIRTQ_USED_ALIGN     4u
#define VIRTQ_DESC_BYTES(n)  (16ull * (n))
#define VIRTQ_AVAIL_BYTES(n) (6ull + 2ull * (n))
#define VIRTQ_USED_BYTES(n)  (6ull + 8ull * (n))

/* 2.7.5 The Virtqueue Descriptor Table: flags */
#define VIRTQ_DESC_F_NEXT     1u
#define VIRTQ_DESC_F_WRITE    2u
#define VIRTQ_DESC_F_INDIRECT 4u

/* 2.7.6 The Virtqueue Available Ring: flags */
#define VIRTQ_AVAIL_F_NO_INTERRUPT 1u

/* 4.2.2 MMIO Device Register Layout */
#define VIRTIO_MMIO_MAGIC_VALUE         0x000u
#define VIRTIO_MMIO_VERSION             0x004u
#define VIRTIO_MMIO_DEVICE_ID           0x008u
#define VIRTIO_MMIO_VENDOR_ID           0x00cu
#define VIRTIO_MMIO_DEVICE_FEATURES     0x010u
#define VIRTIO_MMIO_DEVICE_FEATURES_SEL 0x014u
#define VIRTIO_MMIO_DRIVER_FEATURES     0x020u
#define VIRTIO_MMIO_DRIVER_FEATURES_SEL 0x024u
#define VIRTIO_MMIO_QUEUE_SEL           0x030u
#define VIRTIO_MMIO_QUEUE_NUM_MAX       0x034u
#define VIRTIO_MMIO_QUEUE_NUM           0x038u
#define VIRTIO_MMIO_QUEUE_READY         0x044u
#define VIRTIO_MMIO_QUEUE_NOTIFY        0x050u
#define VIRTIO_MMIO_INTERRUPT_STATUS    0x060u
#define VIRTIO_MMIO_INTERRUPT_ACK       0x064u
#define VIRTIO_MMIO_STATUS              0x070u
#define VIRTIO_MMIO_QUEUE_DESC_LOW      0x080u
#define VIRTIO_MMIO_QUEUE_DESC_HIGH     0x084u
#define VIRTIO_MMIO_QUEUE_DRIVER_LOW    0x090u
#define VIRTIO_MMIO_QUEUE_DRIVER_HIGH   0x094u
#define VIRTIO_MMIO_QUEUE_DEVICE_LOW    0x0a0u
#define VIRTIO_MMIO_QUEUE_DEVICE_HIGH   0x0a4u
#define VIRTIO_MMIO_SHM_LEN_LOW         0x0b0u
#define VIRTIO_MMIO_SHM_BASE_HIGH       0x0bcu
#define VIRTIO_MMIO_CONFIG_GENERATION   0x0fcu
#define VIRTIO_MMIO_CONFIG              0x100u
#define VIRTIO_MMIO_WINDOW              0x1000u

#define VIRTIO_MMIO_MAGIC    0x74726976u /* "virt" */
#define VIRTIO_MMIO_V2       2u
#define VIRTIO_MMIO_VENDOR   0x524c4650u /* any value: "PFLR" */
#define VIRTIO_INT_USED_RING 1u          /* 4.2.2: bits of InterruptStatus */
#define VIRTIO_INT_CONFIG    2u

/* 5 Device Types */
#define VIRTIO_ID_BLOCK 2u
#define VIRTIO_ID_VSOCK 19u

/* 5.2.2 Block Device: queue; 5.2.3 feature bits */
#define VIRTIO_BLK_QUEUE          0u
#define VIRTIO_BLK_F_SIZE_MAX     (1ull << 1)
#define VIRTIO_BLK_F_SEG_MAX      (1ull << 2)
#define VIRTIO_BLK_F_BLK_SIZE     (1ull << 6)
#define VIRTIO_BLK_F_FLUSH        (1ull << 9)
#define VIRTIO_BLK_F_TOPOLOGY     (1ull << 10)
#define VIRTIO_BLK_F_DISCARD      (1ull << 13)
#define VIRTIO_BLK_F_WRITE_ZEROES (1ull << 14)

/* 5.2.4 Device configuration layout, up to and including the write_zeroes fields */
#define VIRTIO_BLK_CONFIG_BYTES 60u

/* 5.2.6 Device Operation: le32 type, le32 reserved, le64 sector; one byte of status at the end */
#define VIRTIO_BLK_HDR_BYTES   16u
#define VIRTIO_BLK_RANGE_BYTES 16u /* le64 sector, le32 num_sectors, le32 flags */
#define VIRTIO_BLK_ID_BYTES    20u
#define VIRTIO_BLK_SECTOR      512u
#define VIRTIO_BLK_UNMAP       1u /* flag of a range */

enum virtio_blk_type {
	VIRTIO_BLK_T_IN = 0,
	VIRTIO_BLK_T_OUT = 1,
	VIRTIO_BLK_T_FLUSH = 4,
	VIRTIO_BLK_T_GET_ID = 8,
	VIRTIO_BLK_T_DISCARD = 11,
	VIRTIO_BLK_T_WRITE_ZEROES = 13,
};

#define VIRTIO_BLK_S_OK     0u
#define VIRTIO_BLK_S_IOERR  1u
#define VIRTIO_BLK_S_UNSUPP 2u

/* 5.10.2 Socket Device: virtqueues */
#define VSOCK_QUEUE_RX    0u
#define VSOCK_QUEUE_TX    1u
#define VSOCK_QUEUE_EVENT 2u
#define VSOCK_QUEUES      3u

/* 5.10.4 Device configuration layout: le64 guest_cid */
#define VSOCK_CONFIG_BYTES 8u

/* 5.10.6 Device Operation: packet header, types, operations, shutdown flags */
#define VSOCK_HDR_BYTES   44u
#define VSOCK_TYPE_STREAM 1u
#define VSOCK_SHUT_RCV    1u /* the sender of the packet will receive no more */
#define VSOCK_SHUT_SEND   2u /* ... will send no more */
#define VSOCK_SHUT_BOTH   3u

enum vsock_op {
	VSOCK_OP_REQUEST = 1,
	VSOCK_OP_RESPONSE = 2,
	VSOCK_OP_RST = 3,
	VSOCK_OP_SHUTDOWN = 4,
	VSOCK_OP_RW = 5,
	VSOCK_OP_CREDIT_UPDATE = 6,
	VSOCK_OP_CREDIT_REQUEST = 7,
};

/* 5.10.4.1 well-known addresses */
#define VSOCK_CID_HOST 2u
