/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers of credit updates and of short data, which the device keeps until there
 * is a reason for an interrupt: when they come back, and that a driver that waits
 * for room, as Linux' does, never waits in vain.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "fake_driver.h"
#include "lib/io.h"
#include "vmm/virtio/virtio_spec.h"

#include <string.h>
#include <unistd.h>

#define TX VSOCK_QUEUE_TX
/* The most data in a packet that is kept. */
#define SHORT 512u

static unsigned used(struct fake *f)
{
	uint32_t id, len;
	unsigned n = 0;

	while (fake_used(f, TX, &id, &len)) {
		assert_int_equal(len, 0);
		n++;
	}
	return n;
}

/* One packet in `descs` descriptors from `first` on, of 44 bytes and those of data. */
static void offer_data(struct fake *f, const struct fake_conn *c, enum vsock_op op, uint16_t first,
		       unsigned descs, uint32_t data)
{
	const struct vsock_hdr h = {
		.src_cid = VSOCK_GUEST_CID,
		.dst_cid = VSOCK_CID_HOST,
		.src_port = c->guest_port,
		.dst_port = c->host_port,
		.len = data,
		.type = VSOCK_TYPE_STREAM,
		.op = (uint16_t)op,
		.buf_alloc = c->buf_alloc,
		.fwd_cnt = c->fwd_cnt,
	};
	uint64_t at = f->tx_area + 64u * first;
	uint32_t total = VSOCK_HDR_BYTES + h.len;
	struct fake_seg seg[3];

	vsock_hdr_pack(fake_ptr(f, at), &h);
	for (unsigned i = 0; i < descs; i++) {
		seg[i] = (struct fake_seg){at, i + 1 < descs ? 10 : total, false};
		at += seg[i].len;
		total -= seg[i].len;
	}
	fake_chain(f, TX, first, seg, descs);
}

/* RW has one byte of data. */
static void offer(struct fake *f, const struct fake_conn *c, enum vsock_op op, uint16_t first,
		  unsigned descs)
{
	offer_data(f, c, op, first, descs, op == VSOCK_OP_RW);
}

static void credit_update(struct fake *f, const struct fake_conn *c, uint16_t first)
{
	offer(f, c, VSOCK_OP_CREDIT_UPDATE, first, 1);
	fake_kick(f, TX);
}

/* A stream, nothing kept, nothing used that was not seen. */
static int begin(struct fake *f, struct fake_conn *c)
{
	int fd;

	fake_start(f);
	fd = fake_connect(f, c, 1);
	used(f);
	assert_int_equal(virtq_kept(&f->dev->queue[TX]), 0);
	return fd;
}

/* The update counts at once, the buffer comes back with the next packet of either direction. */
static void test_kept_until_another(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {.buf_alloc = 10};
	struct vsock_hdr h;
	int fd = begin(f, &c);
	unsigned irqs;

	assert_int_equal(io_write_some(fd, "0123456789abcdefghij", 20), 20);
	fake_turns(f);
	fake_expect(f, &h, VSOCK_OP_RW);
	assert_int_equal(h.len, 10);
	irqs = f->irqs;
	c.buf_alloc = 15;
	credit_update(f, &c, 0);
	assert_int_equal(f->irqs, irqs + 1); /* it has freed a packet for the guest */
	assert_int_equal(used(f), 1);
	fake_expect(f, &h, VSOCK_OP_RW);
	assert_int_equal(h.len, 5);

	c.buf_alloc = 15;
	irqs = f->irqs;
	credit_update(f, &c, 1);
	credit_update(f, &c, 2);
	assert_int_equal(f->irqs, irqs);
	assert_int_equal(used(f), 0);
	assert_int_equal(virtq_kept(&f->dev->queue[TX]), 2);
	/* From the guest. */
	offer_data(f, &c, VSOCK_OP_RW, 3, 2, SHORT + 1);
	fake_kick(f, TX);
	assert_int_equal(used(f), 3);
	assert_int_equal(f->irqs, irqs + 1);
	/* From the host. */
	credit_update(f, &c, 0);
	credit_update(f, &c, 1);
	assert_int_equal(used(f), 0);
	c.buf_alloc = 100;
	irqs = f->irqs;
	credit_update(f, &c, 2);
	assert_int_equal(f->irqs, irqs + 1);
	assert_int_equal(used(f), 3);
	fake_expect(f, &h, VSOCK_OP_RW);
	assert_int_equal(h.len, 5);
	close(fd);
}

/* Short data is with the host at once; its buffer comes back with what the host sends. */
static void test_short_data(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {.buf_alloc = 1000};
	struct vsock_hdr h;
	char data[SHORT + 2];
	int fd = begin(f, &c);
	unsigned irqs = f->irqs;

	for (uint16_t i = 0; i < 3; i++) {
		offer_data(f, &c, VSOCK_OP_RW, (uint16_t)(2 * i), 2, i ? SHORT : 1);
		fake_kick(f, TX);
		assert_int_equal(io_read_some(fd, data, sizeof(data)), i ? SHORT : 1);
	}
	assert_int_equal(f->irqs, irqs);
	assert_int_equal(used(f), 0);
	assert_int_equal(virtq_kept(&f->dev->queue[TX]), 3);
	assert_int_equal(io_write_some(fd, "answered", 8), 8);
	fake_turns(f);
	fake_expect(f, &h, VSOCK_OP_RW);
	assert_int_equal(f->irqs, irqs + 1);
	assert_int_equal(used(f), 3);
	close(fd);
}

/* All else comes back at once, good or bad; and so do long chains. */
static void test_others_are_not_kept(void **state)
{
	static const enum vsock_op ops[] = {VSOCK_OP_CREDIT_REQUEST, VSOCK_OP_REQUEST, VSOCK_OP_RST,
					    VSOCK_OP_SHUTDOWN, VSOCK_OP_RESPONSE};
	struct fake *f = *state;
	struct fake_conn c = {0}, nobody = {.guest_port = 1, .host_port = 1};
	int fd = begin(f, &c);
	unsigned irqs;

	offer(f, &nobody, VSOCK_OP_CREDIT_UPDATE, 0, 1);
	fake_kick(f, TX);
	assert_int_equal(used(f), 1);
	for (uint32_t data = 0; data < 2; data++) {
		offer(f, &c, data ? VSOCK_OP_RW : VSOCK_OP_CREDIT_UPDATE, 0, 3);
		irqs = f->irqs;
		fake_kick(f, TX);
		assert_int_equal(f->irqs, irqs + 1);
		assert_int_equal(used(f), 1);
	}
	offer_data(f, &c, VSOCK_OP_RW, 0, 1, SHORT + 1);
	irqs = f->irqs;
	fake_kick(f, TX);
	assert_int_equal(f->irqs, irqs + 1);
	assert_int_equal(used(f), 1);
	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		offer(f, &c, ops[i], 0, 1);
		irqs = f->irqs;
		fake_kick(f, TX);
		assert_int_equal(f->irqs, irqs + 1);
		assert_int_equal(used(f), 1);
	}
	close(fd);
}

/* So many, and a notification of nothing. */
static void test_bound(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {0};
	int fd = begin(f, &c);
	unsigned irqs = f->irqs;

	for (uint16_t i = 0; i < FAKE_QUEUE / 4; i++) {
		offer(f, &c, VSOCK_OP_CREDIT_UPDATE, 2 * i, 2);
		fake_kick(f, TX);
	}
	assert_int_equal(used(f), 0);
	assert_int_equal(f->irqs, irqs);
	credit_update(f, &c, FAKE_QUEUE / 2);
	assert_int_equal(used(f), FAKE_QUEUE / 4 + 1);
	assert_int_equal(f->irqs, irqs + 1);

	credit_update(f, &c, 0);
	assert_int_equal(used(f), 0);
	fake_kick(f, VSOCK_QUEUE_RX); /* says nothing about this queue */
	assert_int_equal(used(f), 0);
	fake_kick(f, TX);
	assert_int_equal(used(f), 1);
	assert_int_equal(f->irqs, irqs + 2);
	fake_kick(f, TX);
	assert_int_equal(f->irqs, irqs + 2);
	close(fd);
}

/* A queue too small to keep anything of. */
static void test_small_queues(void **state)
{
	struct fake *f = *state;

	for (uint16_t size = 1; size <= 16; size = (uint16_t)(size * 2)) {
		struct fake_conn c = {.guest_port = size, .buf_alloc = 1000};
		struct vsock_hdr h;
		unsigned kept = 0;
		int fd;

		fake_negotiate(f);
		for (unsigned q = 0; q < VSOCK_QUEUES; q++)
			fake_setup_queue(f, q, q == TX ? size : FAKE_QUEUE);
		fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
		for (unsigned i = 0; i < fake_rx_slots(f); i++)
			fake_post_rx(f, i);
		fake_kick(f, VSOCK_QUEUE_RX);
		fd = fake_connect_start(f, c.guest_port, size);
		fake_expect(f, &h, VSOCK_OP_REQUEST);
		c.host_port = h.src_port;
		for (unsigned i = 0; i < 100; i++) {
			uint16_t head = (uint16_t)(i % size), idx = (uint16_t)(i + 1);
			enum vsock_op op = i ? VSOCK_OP_CREDIT_UPDATE : VSOCK_OP_RESPONSE;

			/* By hand: the fake driver's rings have another size. */
			offer(f, &c, op, head, 1);
			memcpy(fake_ptr(f, f->q[TX].avail + 4 + 2u * (i % size)), &head, 2);
			memcpy(fake_ptr(f, f->q[TX].avail + 2), &idx, 2);
			fake_kick(f, TX);
			assert_true(virtq_kept(&f->dev->queue[TX]) <= size / 4);
			if (virtq_kept(&f->dev->queue[TX]) > kept)
				kept = virtq_kept(&f->dev->queue[TX]);
		}
		assert_int_equal(kept, size / 4);
		close(fd);
	}
}

/*
 * A driver as Linux has it: packets wait in a list, go into the queue while it has room, and are
 * reclaimed when there is an interrupt and at no other time; one that finds no room notifies. The
 * host is silent. Whatever comes in whatever order, the list gets empty.
 */
static void test_driver_that_waits_for_room(void **state)
{
	struct fake *f = *state;
	struct fake_conn c = {0};
	uint16_t free_desc[FAKE_QUEUE], head_size[FAKE_QUEUE] = {0};
	unsigned nfree = 0, full = 0, held = 0, seed = 1;
	uint8_t data[512];
	int fd = begin(f, &c);

	/* Pairs, so that a chain is a pair or the first of one. */
	for (unsigned i = 0; i < FAKE_QUEUE; i += 2)
		free_desc[nfree++] = (uint16_t)i;
	for (unsigned burst = 0; burst < 3000; burst++) {
		unsigned waiting = 1 + (seed = seed * 1103515245 + 12345) / 65536 % 150;
		unsigned updates = seed / 7 % 6; /* of five packets */
		unsigned rounds = 0;

		while (waiting) {
			unsigned irqs = f->irqs;
			uint32_t id, len;

			assert_true(rounds++ < 1000);
			while (waiting && nfree) {
				bool update =
					(seed = seed * 1103515245 + 12345) / 65536 % 5 < updates;
				uint16_t head = free_desc[--nfree];

				offer(f, &c, update ? VSOCK_OP_CREDIT_UPDATE : VSOCK_OP_RW, head,
				      update ? 1 : 2);
				head_size[head] = 1;
				waiting--;
			}
			full += waiting != 0;
			fake_kick(f, TX); /* of what was offered, or for want of room */
			for (int i = 0; i < 4; i++)
				fake_turn(f);
			while (io_read_some(fd, data, sizeof(data)) > 0)
				;
			if (f->irqs == irqs) {
				/* Nothing to be reclaimed: then there must be room. */
				assert_true(nfree >= FAKE_QUEUE / 4);
				held++;
				continue;
			}
			while (fake_used(f, TX, &id, &len)) {
				assert_int_equal(head_size[id], 1);
				head_size[id] = 0;
				free_desc[nfree++] = (uint16_t)id;
			}
		}
	}
	assert_true(full > 100 && held > 100);
	assert_int_equal(f->v.dev.faults, 0);
	close(fd);
}

/* What is kept survives a save, and a fork, and comes back in the copy as well. */
static void test_copies(void **state)
{
	static uint8_t a[VIRTIO_STATE_MAX];
	struct fake *f = *state, *f2 = malloc(sizeof(*f2));
	struct fake_conn c = {0};
	struct vsock_hdr h;
	int fd = begin(f, &c), len;

	for (uint16_t i = 0; i < 5; i++)
		credit_update(f, &c, i);
	len = virtio_dev_save(f->dev, a, sizeof(a));
	fake_init(f2);
	memcpy(f2->mem.base, f->mem.base, FAKE_RAM);
	memcpy(f2->q, f->q, sizeof(f->q));
	assert_int_equal(virtio_dev_load(f2->dev, a, (size_t)len), 0);
	assert_int_equal(virtq_kept(&f2->dev->queue[TX]), 5);
	virtio_dev_resume(f2->dev);
	assert_int_equal(used(f2), 5);
	assert_true(f2->irqs > 0);
	fake_expect(f2, &h, VSOCK_OP_RST);
	fake_free(f2);
	free(f2);
	assert_int_equal(used(f), 0);
	/* A driver that starts anew has nothing coming. */
	fake_start(f);
	assert_int_equal(virtq_kept(&f->dev->queue[TX]), 0);
	assert_int_equal(used(f), 0);
	close(fd);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, fake_setup, fake_teardown)
	const struct CMUnitTest tests[] = {
		T(test_kept_until_another),
		T(test_short_data),
		T(test_others_are_not_kept),
		T(test_bound),
		T(test_small_queues),
		T(test_driver_that_waits_for_room),
		T(test_copies),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
