/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-blk device (virtio 1.2, section 5.2) with one queue, over a layered disk
 * that the owner brings: VERSION_1, FLUSH, DISCARD, WRITE_ZEROES, and the limits.
 *
 * Requests are carried out at once, one after the other, on the thread that comes
 * in with the notification. What one stay under the device lock may cost is
 * bounded: BLK_BUDGET bytes, plus the request that passes it. That one moves at most
 * BLK_REQUEST_MAX bytes, or frees at most BLK_RANGES_MAX ranges of BLK_RANGE_SECTORS: 1 GiB, which
 * counts as 16 MiB (BLK_FREE_COST), and each range as a cluster. A flush counts as a whole budget,
 * and so does a write that is flushed because FLUSH was not negotiated. What is copied up for a
 * request (layers.h), at most two clusters a range, counts as it is read and as it is written. If
 * more is waiting, the owner's `again` is called, and the owner calls blk_continue() from its loop;
 * other threads get the lock between.
 *
 * A request that cannot be carried out, for whatever reason (a range outside the
 * disk, a full host), fails alone: it gets the status byte, is counted, and the
 * device goes on. A chain without room for header and status breaks the rules of
 * the transport (NEEDS_RESET).
 *
 * Without FLUSH negotiated every write is flushed (5.2.6.2). UNMAP of WRITE_ZEROES
 * is not looked at: zeros never take up space here.
 *
 * Thread: all functions under the VM's device lock. Nothing allocates.
 *
 * Saved state: nothing but the disk's size, which must match; the disk itself is
 * the owner's to save. No request is ever half done when the lock is free.
 *
 * Fork: the owner gives the disk a top of its own (layers_replace_top()) before
 * virtio_dev_resume(), which carries out what was waiting in the queue.
 */
#pragma once

#include "lib/cleanup.h"
#include "vmm/disk/layers.h"
#include "vmm/virtio/mmio.h"

#include <stdbool.h>
#include <stdint.h>

#define BLK_SEGMENTS_MAX  64u
#define BLK_SEGMENT_MAX   (32u << 10)
#define BLK_REQUEST_MAX   (2u << 20) /* the product of both: data bytes */
#define BLK_RANGES_MAX    16u        /* of one DISCARD or WRITE_ZEROES */
#define BLK_RANGE_SECTORS (1u << 17) /* 64 MiB: so that the host does not free long in one stay */
#define BLK_BUDGET        (1u << 20)
#define BLK_FREE_COST     64u         /* so many bytes freed are as one that is moved */
#define BLK_REQUEST_COST  (16u << 10) /* what a request takes out of the budget beside its data */

/* Reports to the owner, from any thread, under the lock; they must not call back. */
struct blk_events {
	void (*again)(void *arg);              /* more is waiting than the budget allows */
	void (*piled)(void *arg);              /* layers_wants_flatten(), after requests */
	void (*failed)(void *arg, int errnum); /* the host failed a request: positive errno */
	void *arg;
};

struct blk {
	struct virtio_dev dev; /* first: the hooks of virtio_ops get a pointer to it */
	struct layers *disk;
	struct blk_events events;
	bool held; /* see blk_hold() */
	struct virtq_chain chain;
	struct iovec data[VIRTQ_SIZE_MAX];
	uint64_t freed; /* bytes of the ranges of the request that is carried out */
	/* Counters since init; not part of the saved state. */
	uint64_t bytes_read, bytes_written;
	uint64_t refused;   /* requests that made no sense */
	uint64_t io_errors; /* requests that the host failed ... */
	uint64_t no_space;  /* ... among them, for want of space */
};

/* The disk is borrowed, the rest is copied. */
void blk_init(struct blk *b, const struct gmem *mem, const struct virtio_host *host,
	      struct layers *disk, const struct blk_events *events);

/* Carries out what is waiting, within the budget. Harmless at any time. */
void blk_continue(struct blk *b);

/*
 * While held, nothing is begun; what comes is reported by `again`. For a fork: a vCPU that is to
 * park must not find itself in a request, which may wait for the host's storage.
 */
void blk_hold(struct blk *b, bool held);
