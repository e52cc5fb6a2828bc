/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block device: requests that are right in every layout, and wrong in every way;
 * the budget; saved state; a real fork(2) with requests waiting.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "blk_rig.h"
#include "disk_model.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define OK     VIRTIO_BLK_S_OK
#define IOERR  VIRTIO_BLK_S_IOERR
#define UNSUPP VIRTIO_BLK_S_UNSUPP
#define IN     VIRTIO_BLK_T_IN
#define OUT    VIRTIO_BLK_T_OUT
#define FLUSH  VIRTIO_BLK_T_FLUSH

static uint8_t *data(struct rig *r)
{
	return fake_ptr(&r->f, RIG_DATA);
}

static void test_config(void **state)
{
	struct rig *r = *state;
	uint8_t c[VIRTIO_BLK_CONFIG_BYTES];
	uint64_t capacity;
	uint32_t v;

	for (uint32_t i = 0; i < sizeof(c); i++)
		virtio_mmio_read(r->f.dev, VIRTIO_MMIO_CONFIG + i, c + i, 1);
	memcpy(&capacity, c, 8);
	assert_int_equal(capacity, RIG_SECTORS);
	memcpy(&v, c + 12, 4);
	assert_int_equal(v, BLK_SEGMENTS_MAX);
	memcpy(&v, c + 20, 4);
	assert_int_equal(v, 512);
	memcpy(&v, c + 36, 4);
	assert_int_equal(v, BLK_RANGE_SECTORS);
	memcpy(&v, c + 44, 4);
	assert_int_equal(v, LAYERS_CLUSTER / 512); /* discard_sector_alignment */
	assert_int_equal(c[56], 1);
	assert_int_equal(fake_read(&r->f, VIRTIO_MMIO_DEVICE_ID), 2);
	fake_write(&r->f, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	assert_int_equal(fake_read(&r->f, VIRTIO_MMIO_DEVICE_FEATURES), RIG_FEATURES);
}

static void test_read_write(void **state)
{
	struct rig *r = *state;
	uint32_t used;

	/* New: zeros. */
	memset(data(r), 0xaa, 4096);
	assert_int_equal(rig_do(r, IN, 8, 4096, &used), OK);
	assert_int_equal(used, 4097);
	for (int i = 0; i < 4096; i++)
		assert_int_equal(data(r)[i], 0);
	fake_fill(data(r), 1, 200 << 10);
	assert_int_equal(rig_do(r, OUT, 100, 200 << 10, &used), OK);
	assert_int_equal(used, 1);
	memset(data(r), 0, 200 << 10);
	assert_int_equal(rig_do(r, IN, 100, 200 << 10, &used), OK);
	assert_int_equal(used, (200 << 10) + 1);
	fake_check(data(r), 1, 200 << 10);
	/* The last sector, and as much as one request may have. */
	assert_int_equal(rig_do(r, OUT, RIG_SECTORS - 1, 512, NULL), OK);
	assert_int_equal(rig_do(r, IN, 0, BLK_REQUEST_MAX, NULL), OK);
	fake_check(data(r) + 100 * 512, 1, 200 << 10);
	assert_int_equal(r->b.bytes_written, (200 << 10) + 512);
	assert_int_equal(r->b.refused + r->b.io_errors + r->b.dev.faults, 0);
}

/* The same bytes in descriptors of every size (virtio 1.2, 2.7.4). */
static void test_layouts(void **state)
{
	struct rig *r = *state;

	for (uint32_t piece = 1; piece < 700; piece += piece < 40 ? 1 : 53) {
		const uint32_t out = 16 + 1024, in = 1024 + 1;
		struct fake_seg seg[FAKE_QUEUE];
		uint64_t at = RIG_HEADER;
		uint32_t id, used, small = piece < 12 ? 12 : piece;
		unsigned n = 0;

		/* Written from one stretch of memory, header and all ... */
		rig_header(r, 0, OUT, 16);
		fake_fill(fake_ptr(&r->f, RIG_HEADER + 16), piece, 1024);
		for (uint32_t left = out, part = piece; left; left -= part, at += part, n++) {
			part = at < RIG_HEADER + 16 ? piece : small;
			part = part < left ? part : left;
			seg[n] = (struct fake_seg){at, part, false};
		}
		seg[n++] = (struct fake_seg){RIG_STATUS, 1, true};
		fake_chain(&r->f, VIRTIO_BLK_QUEUE, 0, seg, n);
		fake_kick(&r->f, VIRTIO_BLK_QUEUE);
		assert_true(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used));
		assert_int_equal(rig_status(r, 0), OK);
		assert_int_equal(used, 1);
		/* ... and read into another, with the status byte at its end. */
		rig_header(r, 0, IN, 16);
		seg[0] = (struct fake_seg){RIG_HEADER, 16, false};
		at = RIG_DATA;
		n = 1;
		for (uint32_t left = in, part; left; left -= part, at += part, n++) {
			part = small < left ? small : left;
			seg[n] = (struct fake_seg){at, part, true};
		}
		memset(data(r), 0xcc, in);
		fake_chain(&r->f, VIRTIO_BLK_QUEUE, 0, seg, n);
		fake_kick(&r->f, VIRTIO_BLK_QUEUE);
		assert_true(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used));
		assert_int_equal(used, in);
		fake_check(data(r), piece, 1024);
		assert_int_equal(data(r)[1024], OK);
	}
}

/* Requests that make no sense: each gets its status, the disk and the device stay as they are. */
static void test_refused(void **state)
{
	static const struct {
		uint32_t type, len;
		uint64_t sector;
		uint8_t status;
	} bad[] = {
		{IN, 512, RIG_SECTORS, IOERR},
		{IN, 1024, RIG_SECTORS - 1, IOERR},
		{OUT, 1024, RIG_SECTORS - 1, IOERR},
		{OUT, 512, UINT64_MAX, IOERR},
		{OUT, 512, UINT64_MAX / 512, IOERR},
		{IN, 512, 1ull << 55, IOERR}, /* * 512 = 0 in 64 bits */
		{OUT, 512, 1ull << 55, IOERR},
		{IN, 0, 0, IOERR},
		{OUT, 0, 0, IOERR},
		{IN, 511, 0, IOERR},
		{OUT, 513, 0, IOERR},
		{IN, BLK_REQUEST_MAX + 512, 0, IOERR},
		{OUT, BLK_REQUEST_MAX + 512, 0, IOERR},
		{FLUSH, 512, 0, IOERR},
		{VIRTIO_BLK_T_GET_ID, 19, 0, IOERR},
		{VIRTIO_BLK_T_DISCARD, 0, 0, IOERR},
		{VIRTIO_BLK_T_DISCARD, 15, 0, IOERR},
		{VIRTIO_BLK_T_DISCARD, 17, 0, IOERR},
		{VIRTIO_BLK_T_WRITE_ZEROES, 16 * (BLK_RANGES_MAX + 1), 0, IOERR},
		{2, 512, 0, UNSUPP},
		{14, 16, 0, UNSUPP}, /* SECURE_ERASE is not offered */
		{UINT32_MAX, 512, 0, UNSUPP},
	};
	struct rig *r = *state;
	uint32_t used;

	fake_fill(data(r), 9, 64 << 10);
	assert_int_equal(rig_do(r, OUT, 0, 64 << 10, NULL), OK);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		bool in = bad[i].type == IN || bad[i].type == VIRTIO_BLK_T_GET_ID;

		assert_int_equal(rig_do(r, bad[i].type, bad[i].sector, bad[i].len, &used),
				 bad[i].status);
		assert_int_equal(used, in && bad[i].len ? 0 : 1);
		assert_int_equal(r->b.refused, i + 1);
		assert_int_equal(fake_read(&r->f, VIRTIO_MMIO_STATUS), 0xf);
	}
	assert_int_equal(r->disk.used, 1);
	assert_int_equal(rig_do(r, IN, 0, 64 << 10, NULL), OK);
	fake_check(data(r), 9, 64 << 10);
}

/* Data on the wrong side of a request. */
static void test_wrong_direction(void **state)
{
	static const uint32_t types[] = {IN,
					 OUT,
					 FLUSH,
					 VIRTIO_BLK_T_DISCARD,
					 VIRTIO_BLK_T_WRITE_ZEROES,
					 VIRTIO_BLK_T_GET_ID};
	struct rig *r = *state;
	uint32_t id, used;

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		const struct fake_seg seg[] = {{rig_header(r, 0, types[i], 0), 16, false},
					       {RIG_DATA, 512, false},
					       {RIG_DATA + 4096, 512, true},
					       {RIG_STATUS, 1, true}};

		fake_chain(&r->f, VIRTIO_BLK_QUEUE, 0, seg, 4);
		fake_kick(&r->f, VIRTIO_BLK_QUEUE);
		assert_true(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used));
		assert_int_equal(rig_status(r, 0), IOERR);
		assert_int_equal(used, 0);
	}
	assert_int_equal(r->disk.used, 0);
}

/* Chains without room for header or status, and those that the queue itself refuses. */
static void test_broken_chains(void **state)
{
	const struct fake_seg header = {RIG_HEADER, 16, false}, status = {RIG_STATUS, 1, true};
	const struct {
		unsigned n;
		struct fake_seg seg[3];
	} bad[] = {
		{1, {header}},                                      /* no status */
		{1, {status}},                                      /* no header */
		{2, {{RIG_HEADER, 15, false}, status}},             /* a short one */
		{2, {header, {RIG_DATA, 512, false}}},              /* all readable */
		{2, {status, header}},                              /* wrong order */
		{3, {header, {FAKE_RAM - 512, 513, true}, status}}, /* beyond RAM */
		{3, {header, {UINT64_MAX - 100, 512, true}, status}},
		{3, {header, {RIG_DATA, 0, true}, status}},
		{3, {header, {RIG_DATA, UINT32_MAX, false}, status}},
	};
	struct rig *r = *state;
	uint32_t id, used;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		uint64_t faults = r->b.dev.faults;

		rig_header(r, 0, OUT, 0);
		fake_chain(&r->f, VIRTIO_BLK_QUEUE, 0, bad[i].seg, bad[i].n);
		fake_kick(&r->f, VIRTIO_BLK_QUEUE);
		assert_int_equal(fake_read(&r->f, VIRTIO_MMIO_STATUS), 0x4f);
		assert_int_equal(r->b.dev.faults, faults + 1);
		assert_false(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used));
		/* Nothing happens until it is reset; then it works. */
		fake_kick(&r->f, VIRTIO_BLK_QUEUE);
		blk_continue(&r->b);
		assert_false(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used));
		rig_start(r, RIG_FEATURES);
		assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	}
	assert_int_equal(r->disk.used, 0);
}

static void test_ranges(void **state)
{
	struct rig *r = *state;
	const uint32_t c = LAYERS_CLUSTER / 512;

	fake_fill(data(r), 3, 512 << 10);
	assert_int_equal(rig_do(r, OUT, 0, 512 << 10, NULL), OK);
	assert_int_equal(r->disk.used, 8);
	/* One of them is wrong: none is done. */
	for (int wrong = 0; wrong < 5; wrong++) {
		rig_range(r, 0, 0, 2 * c, 0);
		rig_range(r, 1, wrong == 0 ? RIG_SECTORS : 0, c, wrong == 1);
		if (wrong == 2)
			rig_range(r, 1, 0, 0, 0);
		if (wrong == 3)
			rig_range(r, 1, UINT64_MAX, UINT32_MAX, 0);
		if (wrong == 4)
			rig_range(r, 1, 0, c, 2);
		assert_int_equal(rig_do(r, VIRTIO_BLK_T_DISCARD, 0, 32, NULL),
				 wrong == 1 || wrong == 4 ? UNSUPP : IOERR);
		assert_int_equal(r->disk.used, 8);
	}
	rig_range(r, 0, 0, 2 * c, 0);
	rig_range(r, 1, 4 * c, c, 0);
	assert_int_equal(rig_do(r, VIRTIO_BLK_T_DISCARD, 0, 32, NULL), OK);
	assert_int_equal(r->disk.used, 5);
	/* Zeros have to be zeros to the sector, with the flag and without. */
	rig_range(r, 0, 3 * c - 1, 2, VIRTIO_BLK_UNMAP);
	rig_range(r, 1, 5 * c, c + 1, 0);
	assert_int_equal(rig_do(r, VIRTIO_BLK_T_WRITE_ZEROES, 0, 32, NULL), OK);
	assert_int_equal(rig_do(r, IN, 0, 512 << 10, NULL), OK);
	for (uint32_t s = 0; s < 8 * c; s++) {
		bool zero = s < 2 * c || s / c == 4 || s == 3 * c - 1 || s == 3 * c || s / c == 5 ||
			    s == 6 * c;

		if (!zero)
			fake_check(data(r) + 512 * s, 3 + 512 * s, 512);
		for (uint32_t i = 0; zero && i < 512; i++)
			assert_int_equal(data(r)[512 * s + i], 0);
	}
}

static void test_get_id(void **state)
{
	struct rig *r = *state;
	uint32_t used;

	memset(data(r), 'x', 64);
	assert_int_equal(rig_do(r, VIRTIO_BLK_T_GET_ID, 0, 20, &used), OK);
	assert_int_equal(used, 21);
	assert_string_equal((char *)data(r), "podflare-scratch");
	assert_int_equal(rig_do(r, VIRTIO_BLK_T_GET_ID, 0, 64, &used), OK);
	assert_int_equal(used, 20);
	assert_int_equal(data(r)[20], 'x');
}

/* Much at once is done in portions, in order, and nothing is lost or done twice. */
static void test_budget(void **state)
{
	struct rig *r = *state;
	uint32_t id, used, next = 0, turns = 0;

	for (unsigned n = 0; n < 32; n++) {
		fake_fill(fake_ptr(&r->f, RIG_DATA + n * 131072), n, 131072);
		/* All to the same place: the last one stays. */
		rig_submit(r, n, OUT, 0, RIG_DATA + n * 131072, 131072);
	}
	fake_kick(&r->f, VIRTIO_BLK_QUEUE);
	assert_int_equal(r->again, 1);
	assert_in_range(r->b.bytes_written, BLK_BUDGET / 2, BLK_BUDGET + BLK_REQUEST_MAX);
	while (r->again) {
		r->again = 0;
		assert_int_equal(r->f.irqs, ++turns);
		blk_continue(&r->b);
	}
	assert_in_range(turns, 3, 6);
	while (fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used))
		assert_int_equal(id, 4 * next++);
	assert_int_equal(next, 32);
	assert_int_equal(r->b.bytes_written, 32 * 131072);
	assert_int_equal(rig_do(r, IN, 0, 131072, NULL), OK);
	fake_check(data(r), 31, 131072);
	/* A flush is a turn of its own when something is behind it. */
	for (unsigned n = 0; n < 4; n++)
		rig_submit(r, n, FLUSH, 0, 0, 0);
	for (unsigned n = 0; n < 4; n++) {
		r->again = 0;
		if (n == 0)
			fake_kick(&r->f, VIRTIO_BLK_QUEUE);
		else
			blk_continue(&r->b);
		assert_true(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used));
		assert_false(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used));
		assert_int_equal(r->again, n < 3);
	}
	/* What is freed counts by its length: sixteen times the disk would be no more than sixteen
	 * clusters. */
	rig_range(r, 0, 0, RIG_SECTORS, 0);
	r->again = 0;
	for (unsigned n = 0; n < 32; n++)
		rig_submit(r, n, VIRTIO_BLK_T_DISCARD, 0, RIG_DATA, 16);
	fake_kick(&r->f, VIRTIO_BLK_QUEUE);
	for (next = 0; fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used); next++)
		assert_int_equal(id, 4 * next);
	assert_in_range(next, 1, BLK_BUDGET / (LAYERS_CLUSTER + RIG_DISK / BLK_FREE_COST) + 1);
	while (r->again) {
		r->again = 0;
		blk_continue(&r->b);
	}
	while (fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used))
		next++;
	assert_int_equal(next, 32);
	/* A reset in between forgets the rest. */
	for (unsigned n = 0; n < 4; n++)
		rig_submit(r, n, FLUSH, 0, 0, 0);
	fake_kick(&r->f, VIRTIO_BLK_QUEUE);
	fake_write(&r->f, VIRTIO_MMIO_STATUS, 0);
	blk_continue(&r->b);
	rig_start(r, RIG_FEATURES);
	assert_false(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used));
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
}

/* What small writes copy up out of a lower layer counts, once: in the top there is nothing to copy.
 */
static void test_budget_of_copies(void **state)
{
	struct rig *r = *state;
	uint32_t id, used, done[2] = {0, 0};

	for (uint64_t c = 0; c < 64; c += 8)
		assert_int_equal(rig_do(r, OUT, c * 128, 8 * LAYERS_CLUSTER, NULL), OK);
	assert_int_equal(layers_push(&r->disk, disk_model_layer()), 0);
	for (unsigned turn = 0; turn < 2; turn++) {
		r->again = 0;
		for (unsigned n = 0; n < 32; n++)
			rig_submit(r, n, OUT, n * 128 + 8, RIG_DATA, 512);
		fake_kick(&r->f, VIRTIO_BLK_QUEUE);
		while (fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used))
			done[turn]++;
		while (r->again) {
			r->again = 0;
			blk_continue(&r->b);
		}
		while (fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used))
			assert_int_equal(rig_status(r, id / 4), OK);
	}
	assert_in_range(done[0], 4, 8);
	assert_int_equal(done[1], 32);
}

/* The host refuses to store more: that request fails, reads and other places work. */
static void test_host_full(void **state)
{
	const struct rlimit small = {20 * LAYERS_CLUSTER, RLIM_INFINITY};
	struct rig *r = *state;
	struct rlimit before;

	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &before);
	fake_fill(data(r), 5, 65536);
	assert_int_equal(rig_do(r, OUT, 0, 65536, NULL), OK);
	setrlimit(RLIMIT_FSIZE, &small);
	assert_int_equal(rig_do(r, OUT, 30 * LAYERS_CLUSTER / 512, 65536, NULL), IOERR);
	assert_int_equal(rig_do(r, OUT, 19 * LAYERS_CLUSTER / 512 + 8, 2 * 65536, NULL), IOERR);
	assert_int_equal(r->b.io_errors, 2);
	assert_int_equal(r->failures, 2);
	assert_int_equal(r->failed_with, EFBIG);
	assert_int_equal(r->b.no_space, 2);
	assert_int_equal(rig_do(r, OUT, 128, 65536, NULL), OK);
	setrlimit(RLIMIT_FSIZE, &before);
	assert_int_equal(rig_do(r, IN, 30 * LAYERS_CLUSTER / 512, 65536, NULL), OK);
	for (int i = 0; i < 65536; i++)
		assert_int_equal(data(r)[i], 0);
	assert_int_equal(rig_do(r, IN, 0, 65536, NULL), OK);
	fake_check(data(r), 5, 65536);
	assert_int_equal(fake_read(&r->f, VIRTIO_MMIO_STATUS), 0xf);
}

static void test_save_load(void **state)
{
	static uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	struct rig *r = *state, *r2 = malloc(sizeof(*r2));
	uint32_t id, used;
	int len;

	rig_init(r2);
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	rig_submit(r, 0, FLUSH, 0, 0, 0); /* waits in the queue */
	len = virtio_dev_save(r->f.dev, a, sizeof(a));
	assert_true(len > 8);
	memcpy(r2->f.mem.base, r->f.mem.base, FAKE_RAM);
	memcpy(r2->f.q, r->f.q, sizeof(r->f.q));
	for (int cut = 0; cut < len; cut++)
		assert_int_equal(virtio_dev_load(r2->f.dev, a, (size_t)cut), -EPROTO);
	for (int i = len - 8; i < len; i++) { /* a disk of another size */
		a[i] ^= 1;
		assert_int_equal(virtio_dev_load(r2->f.dev, a, (size_t)len), -EPROTO);
		a[i] ^= 1;
	}
	assert_int_equal(virtio_dev_load(r2->f.dev, a, (size_t)len), 0);
	assert_int_equal(virtio_dev_save(r2->f.dev, b, sizeof(b)), len);
	assert_memory_equal(a, b, (size_t)len);
	virtio_dev_resume(r2->f.dev);
	assert_true(fake_used(&r2->f, VIRTIO_BLK_QUEUE, &id, &used));
	assert_int_equal(rig_status(r2, 0), OK);
	assert_int_equal(rig_do(r2, OUT, 0, 512, NULL), OK);
	rig_free(r2);
	free(r2);
}

#define IN_CHILD(cond)                                                            \
	do {                                                                      \
		if (!(cond)) {                                                    \
			fprintf(stderr, "child: line %d: %s\n", __LINE__, #cond); \
			_exit(1);                                                 \
		}                                                                 \
	} while (0)

/* Requests that were offered and not begun are carried out once on each side. */
static void test_fork(void **state)
{
	struct rig *r = *state;
	uint32_t id, used;
	int status;
	pid_t pid;

	fake_fill(data(r), 1, 131072);
	assert_int_equal(rig_do(r, OUT, 0, 131072, NULL), OK);
	fake_fill(data(r), 2, 4096);
	rig_submit(r, 1, OUT, 8, RIG_DATA, 4096);
	rig_submit(r, 2, FLUSH, 0, 0, 0);
	assert_int_equal(layers_push(&r->disk, disk_model_layer()), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		IN_CHILD(layers_replace_top(&r->disk, disk_model_layer()) == 0);
		fake_fill(data(r), 77, 4096); /* the memory of the child is its own */
		IN_CHILD(virtio_dev_fork_child(r->f.dev) == 0);
		virtio_dev_resume(r->f.dev);
	} else {
		fake_kick(&r->f, VIRTIO_BLK_QUEUE);
	}
	for (unsigned n = 1; n <= 2; n++) {
		IN_CHILD(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used) && id == 4 * n);
		IN_CHILD(rig_status(r, n) == OK);
	}
	IN_CHILD(!fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &used));
	if (pid == 0) {
		IN_CHILD(rig_do(r, OUT, 200, 4096, NULL) == OK);
		IN_CHILD(rig_do(r, IN, 0, 131072, NULL) == OK);
		fake_check(data(r), 1, 4096);
		fake_check(data(r) + 4096, 77, 4096);
		fake_check(data(r) + 8192, 1 + 8192, 92 * 1024);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(rig_do(r, IN, 0, 131072, NULL), OK);
	fake_check(data(r), 1, 4096);
	fake_check(data(r) + 4096, 2, 4096);
	fake_check(data(r) + 8192, 1 + 8192, 131072 - 8192);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
	const struct CMUnitTest tests[] = {
		T(test_config),           T(test_read_write),    T(test_layouts),   T(test_refused),
		T(test_wrong_direction),  T(test_broken_chains), T(test_ranges),    T(test_get_id),
		T(test_budget),           T(test_host_full),     T(test_save_load), T(test_fork),
		T(test_budget_of_copies),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
