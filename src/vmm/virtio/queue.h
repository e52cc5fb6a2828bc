/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device side of one split virtqueue. Everything it reads lies in guest RAM
 * and may change at any moment: each value is fetched once into a local,
 * checked, and only then used. A descriptor chain becomes an iovec of host
 * addresses that are wholly inside guest RAM.
 *
 * Use: virtq_peek() shows the next chain without taking it; virtq_complete()
 * takes exactly that chain and gives it back to the guest. A chain that is
 * peeked and not completed stays where it is.
 *
 * virtq_keep() takes a chain without giving it back: nothing is written into the
 * used ring, so no interrupt is due (2.7.7.2 knows no interrupt that a device may
 * put off, once a buffer is used). virtq_return() gives back what was kept, and so
 * does the next virtq_complete(). Chains come back in the order in which they were
 * offered, hence those that are kept are [next_used, next_avail) of the available
 * ring, where the driver cannot put anything else before it has them back.
 *
 * Ownership: a virtq is embedded in its device and borrows the struct gmem.
 * Thread: the caller holds the device lock. Errors: negative errno; -EPROTO
 * means that the guest broke the rules and the device must stop.
 * Fork: plain memory. The cached pointers stay right, as guest RAM keeps its
 * address in the child. Saved state holds addresses and indices only; the
 * pointers are made and checked anew by virtq_load().
 */
#pragma once

#include "lib/cleanup.h"
#include "vmm/core/gmem.h"
#include "vmm/virtio/bytes.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define VIRTQ_SIZE_MAX        256u /* largest queue that a device may offer */
#define VIRTQ_CHAIN_BYTES_MAX (16u << 20)

struct virtq {
	const struct gmem *mem;
	uint16_t max;  /* largest size for this queue: a power of two <= VIRTQ_SIZE_MAX */
	uint16_t size; /* set by the driver, checked by virtq_enable() */
	bool ready;
	bool used_moved; /* buffers were given back since the last virtq_take_irq() */
	uint64_t desc_gpa, avail_gpa, used_gpa;
	uint16_t next_avail, next_used;
	const uint64_t *desc; /* valid while ready */
	const uint16_t *avail;
	uint8_t *used;
};

/* The device-readable segments come first in iov, the device-writable ones behind them. */
struct virtq_chain {
	uint16_t head;
	uint16_t n_out, n_in;
	uint32_t out_len, in_len;
	struct iovec iov[VIRTQ_SIZE_MAX];
};

void virtq_init(struct virtq *q, const struct gmem *mem, uint16_t max);

/* Back to the state after virtq_init(). */
void virtq_reset(struct virtq *q);

/* Checks size and addresses, caches pointers, starts at index 0: 0 or -EPROTO (stays disabled). */
__must_check int virtq_enable(struct virtq *q);

/* 1: *ch is the next chain; 0: none, or the queue is not ready; -EPROTO. */
__must_check int virtq_peek(struct virtq *q, struct virtq_chain *ch);

/* Gives the chain that virtq_peek() showed last back; len = bytes written into it. */
void virtq_complete(struct virtq *q, const struct virtq_chain *ch, uint32_t len);

/* Takes the chain that virtq_peek() showed last, and keeps it. */
void virtq_keep(struct virtq *q);

/* Gives back all chains that were kept, with nothing written into them. */
void virtq_return(struct virtq *q);

/* How many are kept; never more than the queue's size. */
static inline uint16_t virtq_kept(const struct virtq *q)
{
	return (uint16_t)(q->next_avail - q->next_used);
}

/* True when buffers were given back since the last call and the driver wants an interrupt. */
bool virtq_take_irq(struct virtq *q);

/* Copies len bytes at off out of the readable / into the writable part; the range must fit. */
void virtq_read(const struct virtq_chain *ch, uint32_t off, void *dst, uint32_t len);
void virtq_write(const struct virtq_chain *ch, uint32_t off, const void *src, uint32_t len);

/* Segments of [off, off + len) of the readable or writable part into out[]: how many. Must fit. */
int virtq_slice(const struct virtq_chain *ch, bool writable, uint32_t off, uint32_t len,
		struct iovec out[VIRTQ_SIZE_MAX]);

void virtq_save(const struct virtq *q, struct bytes_out *o);
/* Takes over a saved state after checking it as if a guest had set it: 0 or -EPROTO. */
__must_check int virtq_load(struct virtq *q, struct bytes_in *in);
