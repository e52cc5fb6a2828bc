/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Split virtqueue: what a driver may do, and everything it must not be able to
 * do. RAM is a malloc'ed block, so a step outside is seen by the sanitizer.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "vmm/virtio/queue.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <string.h>

#define RAM  (1u << 20)
#define SIZE 16u

static const uint64_t DESC = 0x1000, AVAIL = 0x2000, USED = 0x3000, DATA = 0x10000;

struct rig {
	struct gmem mem;
	struct virtq q;
	struct virtq_chain ch;
};

static void put(struct rig *r, uint64_t gpa, uint64_t v, size_t n)
{
	memcpy(r->mem.base + gpa, &v, n);
}

static uint64_t get(struct rig *r, uint64_t gpa, size_t n)
{
	uint64_t v = 0;

	memcpy(&v, r->mem.base + gpa, n);
	return v;
}

static void desc(struct rig *r, unsigned i, uint64_t addr, uint32_t len, unsigned flags,
		 unsigned next)
{
	put(r, DESC + 16 * i, addr, 8);
	put(r, DESC + 16 * i + 8, len, 4);
	put(r, DESC + 16 * i + 12, flags, 2);
	put(r, DESC + 16 * i + 14, next, 2);
}

/* Makes head available at ring position i and sets the index to i + 1. */
static void avail(struct rig *r, unsigned i, unsigned head)
{
	put(r, AVAIL + 4 + 2 * (i % SIZE), head, 2);
	put(r, AVAIL + 2, i + 1, 2);
}

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));

	r->mem.base = aligned_alloc(4096, RAM);
	r->mem.size = RAM;
	memset(r->mem.base, 0, RAM);
	virtq_init(&r->q, &r->mem, SIZE);
	r->q.size = SIZE;
	r->q.desc_gpa = DESC;
	r->q.avail_gpa = AVAIL;
	r->q.used_gpa = USED;
	assert_int_equal(virtq_enable(&r->q), 0);
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	free(r->mem.base);
	free(r);
	return 0;
}

static void test_chain_in_order(void **state)
{
	struct rig *r = *state;

	assert_int_equal(virtq_peek(&r->q, &r->ch), 0);
	desc(r, 5, DATA, 10, VIRTQ_DESC_F_NEXT, 2);
	desc(r, 2, DATA + 100, 20, VIRTQ_DESC_F_NEXT, 9);
	desc(r, 9, DATA + 200, 30, VIRTQ_DESC_F_WRITE, 0);
	avail(r, 0, 5);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
	assert_int_equal(r->ch.head, 5);
	assert_int_equal(r->ch.n_out, 2);
	assert_int_equal(r->ch.n_in, 1);
	assert_int_equal(r->ch.out_len, 30);
	assert_int_equal(r->ch.in_len, 30);
	assert_ptr_equal(r->ch.iov[1].iov_base, r->mem.base + DATA + 100);
	/* A peek does not take it. */
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
	virtq_complete(&r->q, &r->ch, 7);
	assert_int_equal(get(r, USED + 2, 2), 1);
	assert_int_equal(get(r, USED + 4, 4), 5);
	assert_int_equal(get(r, USED + 8, 4), 7);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 0);
}

static void test_indices_wrap(void **state)
{
	struct rig *r = *state;

	desc(r, 3, DATA, 8, 0, 0);
	for (unsigned i = 0; i < 3 * 65536; i++) {
		avail(r, i, 3);
		assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
		virtq_complete(&r->q, &r->ch, i);
		assert_int_equal(get(r, USED + 2, 2), (i + 1) & 0xffff);
		assert_int_equal(get(r, USED + 8 + 8 * (i % SIZE), 4), i);
	}
}

static void test_full_chain(void **state)
{
	struct rig *r = *state;

	for (unsigned i = 0; i < SIZE; i++)
		desc(r, i, DATA + 64 * i, 1, i + 1 < SIZE ? VIRTQ_DESC_F_NEXT : 0, i + 1);
	avail(r, 0, 0);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
	assert_int_equal(r->ch.n_out, SIZE);
}

static void test_irq_suppression(void **state)
{
	struct rig *r = *state;

	desc(r, 0, DATA, 8, 0, 0);
	assert_false(virtq_take_irq(&r->q));
	avail(r, 0, 0);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
	virtq_complete(&r->q, &r->ch, 0);
	assert_true(virtq_take_irq(&r->q));
	assert_false(virtq_take_irq(&r->q));
	put(r, AVAIL, VIRTQ_AVAIL_F_NO_INTERRUPT, 2);
	avail(r, 1, 0);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
	virtq_complete(&r->q, &r->ch, 0);
	assert_false(virtq_take_irq(&r->q));
}

/* Kept chains: no trace of them until they are returned, by themselves or before the next. */
static void test_keep(void **state)
{
	uint8_t a[64];
	struct bytes_out oa = {.p = a, .left = sizeof(a)};
	struct rig *r = *state;
	struct virtq q2;

	for (unsigned i = 0; i < SIZE; i++)
		desc(r, i, DATA + 64 * i, 8, 0, 0);
	for (unsigned i = 0; i < 3; i++) {
		avail(r, i, 7 + i);
		assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
		virtq_keep(&r->q);
		assert_int_equal(virtq_kept(&r->q), i + 1);
		assert_int_equal(virtq_peek(&r->q, &r->ch), 0);
	}
	assert_int_equal(get(r, USED + 2, 2), 0);
	assert_false(virtq_take_irq(&r->q));
	virtq_save(&r->q, &oa);
	avail(r, 3, 1);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
	virtq_complete(&r->q, &r->ch, 5);
	assert_true(virtq_take_irq(&r->q));
	assert_int_equal(virtq_kept(&r->q), 0);
	assert_int_equal(get(r, USED + 2, 2), 4);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(get(r, USED + 4 + 8 * i, 4), i < 3 ? 7 + i : 1);
		assert_int_equal(get(r, USED + 8 + 8 * i, 4), i < 3 ? 0 : 5);
	}
	virtq_return(&r->q);
	assert_false(virtq_take_irq(&r->q));
	assert_int_equal(get(r, USED + 2, 2), 4);
	/* Saved with three that are kept; more than there can be are refused. */
	put(r, USED + 2, 0, 2);
	for (unsigned kept = 0; kept < 65536; kept++) {
		size_t len = sizeof(a) - oa.left;
		uint16_t next_used = (uint16_t)(3 - kept);
		int rc;

		memcpy(a + len - 2, &next_used, 2);
		virtq_init(&q2, &r->mem, SIZE);
		rc = virtq_load(&q2, &(struct bytes_in){.p = a, .left = len});
		assert_int_equal(rc, kept <= SIZE ? 0 : -EPROTO);
		if (kept == 3) {
			virtq_return(&q2);
			assert_true(virtq_take_irq(&q2));
			assert_int_equal(get(r, USED + 2, 2), 3);
			assert_int_equal(get(r, USED + 4 + 16, 4), 9);
		}
	}
}

/* Bytes through a chain of odd pieces, at every offset and length. */
static void test_read_write_slice(void **state)
{
	static const uint32_t piece[] = {1, 5, 17, 2, 40};
	struct rig *r = *state;
	uint8_t in[65], back[65];
	struct iovec part[VIRTQ_SIZE_MAX];
	uint64_t at = DATA;

	for (unsigned i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i * 7 + 1);
	for (unsigned dir = 0; dir < 2; dir++)
		for (unsigned i = 0; i < 5; i++) {
			unsigned d = dir * 5 + i;

			desc(r, d, at, piece[i],
			     (dir ? VIRTQ_DESC_F_WRITE : 0) | (d < 9 ? VIRTQ_DESC_F_NEXT : 0),
			     d + 1);
			at += 1000;
		}
	avail(r, 0, 0);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
	assert_int_equal(r->ch.out_len, 65);
	for (uint32_t off = 0; off <= 65; off++)
		for (uint32_t len = 0; len <= 65 - off; len++) {
			size_t sum = 0;
			int n = virtq_slice(&r->ch, true, off, len, part);

			for (int i = 0; i < n; i++) {
				assert_true(part[i].iov_len > 0);
				memset(part[i].iov_base, 0, part[i].iov_len);
				sum += part[i].iov_len;
			}
			assert_int_equal(sum, len);
			virtq_write(&r->ch, off, in, len);
			/* The writable part becomes the readable one by copying piece by piece. */
			for (unsigned i = 0; i < 5; i++)
				memcpy(r->ch.iov[i].iov_base, r->ch.iov[5 + i].iov_base, piece[i]);
			memset(back, 0xee, sizeof(back));
			virtq_read(&r->ch, off, back, len);
			assert_memory_equal(back, in, len);
			assert_true(len == 65 || back[len] == 0xee);
		}
}

static void expect_refused(struct rig *r)
{
	assert_int_equal(virtq_peek(&r->q, &r->ch), -EPROTO);
	assert_int_equal(get(r, USED + 2, 2), 0);
}

static void test_loop_in_chain(void **state)
{
	struct rig *r = *state;

	desc(r, 0, DATA, 8, VIRTQ_DESC_F_NEXT, 1);
	desc(r, 1, DATA, 8, VIRTQ_DESC_F_NEXT, 0);
	avail(r, 0, 0);
	expect_refused(r);
	desc(r, 1, DATA, 8, VIRTQ_DESC_F_NEXT, 1); /* to itself */
	expect_refused(r);
}

static void test_bad_index(void **state)
{
	struct rig *r = *state;

	avail(r, 0, SIZE);
	expect_refused(r);
	avail(r, 0, 0xffff);
	expect_refused(r);
	desc(r, 0, DATA, 8, VIRTQ_DESC_F_NEXT, SIZE);
	avail(r, 0, 0);
	expect_refused(r);
	desc(r, 0, DATA, 8, VIRTQ_DESC_F_NEXT, 0xffff);
	expect_refused(r);
}

static void test_bad_segments(void **state)
{
	static const struct {
		uint64_t addr;
		uint32_t len;
	} bad[] = {
		{DATA, 0},
		{RAM, 1},
		{RAM - 1, 2},
		{RAM - 8, 9},
		{0, RAM + 1},
		{DATA, 0xffffffff},
		{UINT64_MAX, 1},
		{UINT64_MAX, 2},
		{UINT64_MAX - 7, 16},
		{1ull << 63, 8},
		{0xd0000000, 4},
		{0xfee00000, 4},
		{GMEM_GAP_START, 1},
		{GMEM_HIGH_START, 1},
	};
	struct rig *r = *state;

	avail(r, 0, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		desc(r, 0, bad[i].addr, bad[i].len, 0, 0);
		expect_refused(r);
		desc(r, 0, bad[i].addr, bad[i].len, VIRTQ_DESC_F_WRITE, 0);
		expect_refused(r);
	}
	desc(r, 0, RAM - 8, 8, 0, 0);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
}

static void test_indirect_and_order(void **state)
{
	struct rig *r = *state;

	avail(r, 0, 0);
	desc(r, 0, DATA, 16, VIRTQ_DESC_F_INDIRECT, 0);
	expect_refused(r);
	desc(r, 0, DATA, 16, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT, 1);
	desc(r, 1, DATA, 16, 0, 0); /* readable behind writable */
	expect_refused(r);
}

/* 16 pieces of RAM size each: more than a chain may hold, though each is inside RAM. */
static void test_too_many_bytes(void **state)
{
	struct rig *r = *state;

	for (unsigned i = 0; i < SIZE; i++)
		desc(r, i, 0, RAM, i + 1 < SIZE ? VIRTQ_DESC_F_NEXT : 0, i + 1);
	avail(r, 0, 0);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1); /* exactly the limit */
	assert_int_equal(r->ch.out_len, VIRTQ_CHAIN_BYTES_MAX);
	virtq_reset(&r->q);
	r->q = (struct virtq){.mem = &r->mem,
			      .max = 32,
			      .size = 32,
			      .desc_gpa = DESC,
			      .avail_gpa = AVAIL,
			      .used_gpa = USED};
	assert_int_equal(virtq_enable(&r->q), 0);
	desc(r, SIZE - 1, 0, RAM, VIRTQ_DESC_F_NEXT, SIZE);
	desc(r, SIZE, 0, 1, 0, 0);
	expect_refused(r);
}

static void test_avail_index_jumps(void **state)
{
	struct rig *r = *state;

	desc(r, 0, DATA, 8, 0, 0);
	put(r, AVAIL + 2, SIZE, 2);
	assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
	put(r, AVAIL + 2, SIZE + 1, 2);
	expect_refused(r);
	put(r, AVAIL + 2, 0xffff, 2); /* backwards */
	expect_refused(r);
}

static void test_enable_checks(void **state)
{
	static const struct {
		uint32_t size;
		uint64_t desc, avail, used;
	} bad[] = {
		{0, 0x1000, 0x2000, 0x3000},
		{3, 0x1000, 0x2000, 0x3000},
		{15, 0x1000, 0x2000, 0x3000},
		{2 * SIZE, 0x1000, 0x2000, 0x3000},
		{0x8000, 0x1000, 0x2000, 0x3000},
		{SIZE, 0x1008, 0x2000, 0x3000}, /* alignment */
		{SIZE, 0x1000, 0x2001, 0x3000},
		{SIZE, 0x1000, 0x2000, 0x3002},
		{SIZE, RAM - 16 * SIZE + 16, 0x2000, 0x3000}, /* over the end */
		{SIZE, 0x1000, RAM - 2 * SIZE - 4, 0x3000},
		{SIZE, 0x1000, 0x2000, RAM - 8 * SIZE - 4},
		{SIZE, RAM, 0x2000, 0x3000},
		{SIZE, 0x1000, 0xfee00000, 0x3000},
		{SIZE, 0x1000, 0x2000, 0xfffffffffffffff0},
	};
	struct rig *r = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		virtq_reset(&r->q);
		assert_false(r->q.ready);
		r->q.size = (uint16_t)bad[i].size;
		r->q.desc_gpa = bad[i].desc;
		r->q.avail_gpa = bad[i].avail;
		r->q.used_gpa = bad[i].used;
		assert_int_equal(virtq_enable(&r->q), -EPROTO);
		assert_false(r->q.ready);
		assert_int_equal(virtq_peek(&r->q, &r->ch), 0);
	}
	/* At the very end of RAM, all three. */
	virtq_reset(&r->q);
	r->q.size = SIZE;
	r->q.desc_gpa = RAM - 16 * SIZE;
	r->q.avail_gpa = RAM - 6 - 2 * SIZE;
	r->q.used_gpa = RAM - 8 - 8 * SIZE;
	assert_int_equal(virtq_enable(&r->q), 0);
}

static void test_save_load(void **state)
{
	uint8_t a[64], b[64];
	struct bytes_out oa = {.p = a, .left = sizeof(a)}, ob = {.p = b, .left = sizeof(b)};
	struct rig *r = *state;
	struct virtq q2;
	size_t len;

	desc(r, 0, DATA, 8, 0, 0);
	for (unsigned i = 0; i < 5; i++) {
		avail(r, i, 0);
		assert_int_equal(virtq_peek(&r->q, &r->ch), 1);
		virtq_complete(&r->q, &r->ch, 0);
	}
	avail(r, 5, 0);
	virtq_save(&r->q, &oa);
	assert_false(oa.bad);
	len = sizeof(a) - oa.left;

	virtq_init(&q2, &r->mem, SIZE);
	assert_int_equal(virtq_load(&q2, &(struct bytes_in){.p = a, .left = len}), 0);
	virtq_save(&q2, &ob);
	assert_memory_equal(a, b, len);
	assert_int_equal(virtq_peek(&q2, &r->ch), 1); /* goes on where it was */
	virtq_complete(&q2, &r->ch, 0);
	assert_int_equal(get(r, USED + 2, 2), 6);

	/* Hostile: cut short, size, ready flag, address outside. */
	for (size_t cut = 0; cut < len; cut++) {
		virtq_init(&q2, &r->mem, SIZE);
		assert_int_equal(virtq_load(&q2, &(struct bytes_in){.p = a, .left = cut}), -EPROTO);
	}
	static const struct {
		size_t at;
		uint8_t v;
	} bad[] = {{0, 17},    {1, 0xff}, {2, 2},     {2, 0xff}, {3, 8}, {5, 0x7f},
		   {10, 0x80}, {11, 1},   {18, 0xff}, {19, 2},   {26, 1}};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		memcpy(b, a, len);
		b[bad[i].at] = bad[i].v;
		virtq_init(&q2, &r->mem, SIZE);
		assert_int_equal(virtq_load(&q2, &(struct bytes_in){.p = b, .left = len}), -EPROTO);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_chain_in_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_indices_wrap, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full_chain, setup, teardown),
		cmocka_unit_test_setup_teardown(test_irq_suppression, setup, teardown),
		cmocka_unit_test_setup_teardown(test_keep, setup, teardown),
		cmocka_unit_test_setup_teardown(test_read_write_slice, setup, teardown),
		cmocka_unit_test_setup_teardown(test_loop_in_chain, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_index, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_segments, setup, teardown),
		cmocka_unit_test_setup_teardown(test_indirect_and_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_too_many_bytes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_avail_index_jumps, setup, teardown),
		cmocka_unit_test_setup_teardown(test_enable_checks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
