/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest driver for tests: virtqueues in malloc'ed guest RAM (so that the
 * address sanitizer sees every byte beside it), register accesses as a vCPU
 * would make them, and the vsock packets of a guest. Also a vsock device with
 * a real event loop and a record of its reports.
 */
#pragma once

#include "lib/loop.h"
#include "vmm/virtio/vsock.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define FAKE_RAM     (8u << 20)
#define FAKE_QUEUE   128u
#define FAKE_RX_BUF  4096u /* as Linux posts them */
#define FAKE_COOKIES 2048u

enum fake_report { FAKE_NONE, FAKE_CONNECTED, FAKE_REFUSED, FAKE_CLOSED };

/* How receive buffers are laid out. */
enum fake_layout {
	FAKE_RX_SPLIT,  /* header and data apart, as Linux 6.1 */
	FAKE_RX_SINGLE, /* one buffer, as later kernels */
	FAKE_RX_SHREDS, /* pieces of 7, 40 and 100 bytes and the rest */
};

struct fake_queue {
	uint64_t desc, avail, used;
	uint16_t avail_idx, used_seen;
};

struct fake_seg {
	uint64_t addr;
	uint32_t len;
	bool write;
};

struct fake {
	struct gmem mem;
	struct vsock v;
	struct virtio_dev *dev;
	struct loop loop;
	struct loop_src src;
	struct fake_queue q[VIRTIO_QUEUES_MAX];
	enum fake_layout layout;
	pthread_mutex_t lock; /* the device lock, for tests with threads */
	pthread_cond_t irq;
	unsigned irqs; /* edges raised */
	unsigned wakeups;
	uint64_t rx_area, tx_area;
	unsigned tx_next; /* TX slot */
	enum fake_report report[FAKE_COOKIES];
	int refused_with[FAKE_COOKIES];
	unsigned connects[FAKE_COOKIES], ends[FAKE_COOKIES];
	unsigned asks; /* reports that the guest has a question */
};

/* A guest's end of a connection, with its own accounting. */
struct fake_conn {
	uint32_t guest_port, host_port;
	uint32_t buf_alloc, fwd_cnt; /* of the guest */
	uint32_t tx_cnt, peer_alloc, peer_fwd;
};

/* RAM, device in reset state, loop watching it. */
void fake_init(struct fake *f);
void fake_free(struct fake *f);

uint32_t fake_read(struct fake *f, uint32_t reg);
void fake_write(struct fake *f, uint32_t reg, uint32_t v);

/* Steps of a driver's start; fake_start() does them all and posts all receive buffers. */
void fake_negotiate(struct fake *f); /* to FEATURES_OK */
void fake_setup_queue(struct fake *f, unsigned q, uint16_t size);
void fake_start(struct fake *f);

/* Raw ring access. */
void fake_desc(struct fake *f, unsigned q, uint16_t i, uint64_t addr, uint32_t len, uint16_t flags,
	       uint16_t next);
void fake_avail(struct fake *f, unsigned q, uint16_t head);
void fake_avail_flags(struct fake *f, unsigned q, uint16_t flags);
void fake_chain(struct fake *f, unsigned q, uint16_t first_desc, const struct fake_seg *seg,
		unsigned n);
/* Next element of the used ring: false when there is none. */
bool fake_used(struct fake *f, unsigned q, uint32_t *id, uint32_t *len);
void fake_kick(struct fake *f, unsigned q);
uint8_t *fake_ptr(struct fake *f, uint64_t gpa);

/* Posts receive buffer slot (0..fake_rx_slots) without a notification. */
unsigned fake_rx_slots(const struct fake *f);
void fake_post_rx(struct fake *f, unsigned slot);

/*
 * Takes the next packet that the device has delivered, posts its buffer again
 * when repost, and notifies. data has room for FAKE_RX_BUF. False: none.
 */
bool fake_rx(struct fake *f, struct vsock_hdr *h, uint8_t *data, bool repost);
/* fake_rx() that fails the test when there is no packet, or one of another op. */
void fake_expect(struct fake *f, struct vsock_hdr *h, enum vsock_op op);

/* Sends a packet in `pieces` descriptors and notifies. False: no free TX slot (device is behind).
 */
bool fake_tx_hdr(struct fake *f, const struct vsock_hdr *h, const void *data, unsigned pieces);
bool fake_tx(struct fake *f, const struct fake_conn *c, enum vsock_op op, uint32_t flags,
	     const void *data, uint32_t len);

/* One turn of the event loop, without waiting: number of its wake-ups for the device. */
unsigned fake_turn(struct fake *f);

/* Opens a connection up to the guest's RESPONSE: the host's end of the socketpair. */
int fake_connect(struct fake *f, struct fake_conn *c, uint32_t cookie);
/* The same without any answer of the guest. */
int fake_connect_start(struct fake *f, uint32_t guest_port, uint32_t cookie);

/* cmocka fixtures: *state is a struct fake. */
int fake_setup(void **state);
int fake_teardown(void **state);

/* Byte number i of a test stream; len of them from number `from` on, made or checked. */
uint8_t fake_pattern(uint64_t i);
void fake_fill(uint8_t *p, uint64_t from, size_t len);
void fake_check(const uint8_t *p, uint64_t from, size_t len);

/* Some turns of the loop, enough for what is under way. */
void fake_turns(struct fake *f);
/* The loop has nothing to do, now and again: nobody spins. */
void fake_assert_quiet(struct fake *f);
void fake_assert_no_packet(struct fake *f);

/* The host's end reads EOF; or, where the device may not have read all, ECONNRESET. */
void fake_assert_eof(int fd);
void fake_assert_ended(int fd);
/* Reads everything that is there: how much. */
size_t fake_drain(int fd);

/* Takes a packet for this connection into the accounting of the guest. */
void fake_guest_sees(struct fake_conn *c, const struct vsock_hdr *h);
