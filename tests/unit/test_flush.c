/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flushes of the block device, down to fdatasync(2): of which files, when, how often; and a host
 * that fails them, with what the guest is told then.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "blk_rig.h"
#include "disk_model.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OK      VIRTIO_BLK_S_OK
#define IOERR   VIRTIO_BLK_S_IOERR
#define UNSUPP  VIRTIO_BLK_S_UNSUPP
#define OUT     VIRTIO_BLK_T_OUT
#define FLUSH   VIRTIO_BLK_T_FLUSH
#define DISCARD VIRTIO_BLK_T_DISCARD
#define ZEROES  VIRTIO_BLK_T_WRITE_ZEROES
#define CALLS   8u
/* Not FLUSH, and not DISCARD for another one that is missing. */
#define WRITE_THROUGH (RIG_FEATURES & ~(uint32_t)(VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_DISCARD))

/* What was asked of the host, and which call (from 1) it fails with what. */
static struct {
	unsigned int calls, fail;
	int error;
	ino_t file[CALLS];
	uint8_t first[CALLS]; /* byte of the file at that moment */
} host;

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
	struct stat st;
	uint8_t byte = 0;

	assert_true(host.calls < CALLS);
	assert_int_equal(fstat(fd, &st), 0);
	assert_true(pread(fd, &byte, 1, 0) >= 0);
	host.file[host.calls] = st.st_ino;
	host.first[host.calls] = byte;
	if (++host.calls != host.fail)
		return __real_fdatasync(fd);
	errno = host.error;
	return -1;
}

/* Counts from here on; the nth call fails. */
static void from_now(unsigned int nth, int error)
{
	memset(&host, 0, sizeof(host));
	host.fail = nth;
	host.error = error;
}

static ino_t top_of(const struct rig *r)
{
	struct stat st;

	assert_int_equal(fstat(r->disk.top_rw, &st), 0);
	return st.st_ino;
}

static uint8_t write_byte(struct rig *r, uint64_t sector, uint8_t byte)
{
	memset(fake_ptr(&r->f, RIG_DATA), byte, 512);
	return rig_do(r, OUT, sector, 512, NULL);
}

static void test_what_is_written_is_flushed_once(void **state)
{
	struct rig *r = *state;

	from_now(0, 0);
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	assert_int_equal(write_byte(r, 0, 1), OK);
	assert_int_equal(write_byte(r, 8, 2), OK);
	assert_int_equal(host.calls, 0); /* nothing to flush, and nothing flushed by a write */
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	assert_int_equal(host.calls, 1);
	assert_true(host.file[0] == top_of(r));
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	assert_int_equal(host.calls, 1);
	/* A hole in the top is to be kept as well. */
	assert_int_equal(rig_do(r, ZEROES, 0, 0, NULL), IOERR);
	rig_range(r, 0, 0, 4, 0);
	assert_int_equal(rig_do(r, ZEROES, 0, 16, NULL), OK);
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	assert_int_equal(host.calls, 2);
}

/* In one go: the flush covers the write before it, not the one behind. */
static void test_order(void **state)
{
	struct rig *r = *state;

	from_now(0, 0);
	memset(fake_ptr(&r->f, RIG_DATA), 1, 512);
	memset(fake_ptr(&r->f, RIG_DATA) + 512, 2, 512);
	rig_submit(r, 0, OUT, 0, RIG_DATA, 512);
	rig_submit(r, 1, FLUSH, 0, 0, 0);
	rig_submit(r, 2, OUT, 0, RIG_DATA + 512, 512);
	fake_kick(&r->f, VIRTIO_BLK_QUEUE);
	while (r->again) {
		r->again = 0;
		blk_continue(&r->b);
	}
	for (unsigned n = 0; n < 3; n++)
		assert_int_equal(rig_status(r, n), OK);
	assert_int_equal(host.calls, 1);
	assert_int_equal(host.first[0], 1);
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	assert_int_equal(host.calls, 2);
	assert_int_equal(host.first[1], 2);
}

/* What was written before a fork is in a lower layer by now. */
static void test_every_layer_that_was_written_to(void **state)
{
	struct rig *r = *state;
	ino_t lower = top_of(r);

	assert_int_equal(write_byte(r, 0, 1), OK);
	assert_int_equal(layers_push(&r->disk, disk_model_layer()), 0);
	assert_int_equal(write_byte(r, 1024, 2), OK);
	from_now(0, 0);
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	assert_int_equal(host.calls, 2);
	assert_true((host.file[0] == lower && host.file[1] == top_of(r)) ||
		    (host.file[1] == lower && host.file[0] == top_of(r)));
	assert_int_equal(write_byte(r, 1024, 3), OK);
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	assert_int_equal(host.calls, 3);
	assert_true(host.file[2] == top_of(r));
}

/* A driver that knows no flushes has every write with the host's storage when it is told so. */
static void test_write_through(void **state)
{
	struct rig *r = *state;

	rig_start(r, WRITE_THROUGH);
	from_now(0, 0);
	assert_int_equal(write_byte(r, 0, 7), OK);
	assert_int_equal(host.calls, 1);
	assert_int_equal(host.first[0], 7);
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), UNSUPP);
	rig_range(r, 0, 0, 1, 0);
	assert_int_equal(rig_do(r, DISCARD, 0, 16, NULL), UNSUPP);
	assert_int_equal(rig_do(r, ZEROES, 0, 16, NULL), OK);
	assert_int_equal(host.calls, 1);
	from_now(1, EIO);
	assert_int_equal(write_byte(r, 0, 8), IOERR);
	assert_int_equal(r->failed_with, EIO);
}

/* Each of its writes waits for the host's storage, and is a stay of its own: as a flush is. */
static void test_write_through_in_turns(void **state)
{
	struct rig *r = *state;

	rig_start(r, WRITE_THROUGH);
	from_now(0, 0);
	memset(fake_ptr(&r->f, RIG_DATA), 1, 512);
	for (unsigned n = 0; n < 4; n++)
		rig_submit(r, n, OUT, 8 * n, RIG_DATA, 512);
	fake_kick(&r->f, VIRTIO_BLK_QUEUE);
	for (unsigned n = 0; n < 4; n++) {
		assert_int_equal(host.calls, n + 1);
		assert_int_equal(rig_status(r, n), OK);
		assert_int_equal(r->again, n < 3);
		r->again = 0;
		blk_continue(&r->b);
	}
	assert_int_equal(host.calls, 4);
}

/* The guest gets an I/O error, the owner the host's reason; nothing counts as flushed. */
static void test_a_flush_that_fails(void **state)
{
	static const int errors[] = {EIO, ENOSPC, EDQUOT};
	struct rig *r = *state;

	for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
		assert_int_equal(write_byte(r, 0, 1), OK);
		from_now(1, errors[i]);
		assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), IOERR);
		assert_int_equal(host.calls, 1);
		assert_int_equal(r->failures, i + 1);
		assert_int_equal(r->failed_with, errors[i]);
		/* The disk works on; the next flush asks the host again. */
		assert_int_equal(write_byte(r, 8, 2), OK);
		assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
		assert_int_equal(host.calls, 2);
		assert_int_equal(r->failures, i + 1);
	}
	assert_int_equal(fake_read(&r->f, VIRTIO_MMIO_STATUS), 0xf);
}

/* Of two files either may fail: both are flushed when a flush has been said to be done. */
static void test_one_of_two_layers_fails(void **state)
{
	struct rig *r = *state;
	ino_t lower = top_of(r), top;

	assert_int_equal(write_byte(r, 0, 1), OK);
	assert_int_equal(layers_push(&r->disk, disk_model_layer()), 0);
	top = top_of(r);
	for (unsigned nth = 1; nth <= 2; nth++) {
		unsigned done = 0;

		/* Both are to be flushed again. */
		r->disk.layer[0].unsynced = r->disk.layer[1].unsynced = true;
		assert_int_equal(write_byte(r, 1024, 2), OK);
		from_now(nth, EIO);
		assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), IOERR);
		assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
		for (unsigned i = 0; i < host.calls; i++)
			if (i + 1 != host.fail)
				done |= host.file[i] == lower ? 1u : host.file[i] == top ? 2u : 4u;
		assert_int_equal(done, 3);
	}
}

static void test_a_signal_is_no_failure(void **state)
{
	struct rig *r = *state;

	assert_int_equal(write_byte(r, 0, 1), OK);
	from_now(1, EINTR);
	assert_int_equal(rig_do(r, FLUSH, 0, 0, NULL), OK);
	assert_int_equal(host.calls, 2);
	assert_int_equal(r->failures, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
	const struct CMUnitTest tests[] = {
		T(test_what_is_written_is_flushed_once), T(test_order),
		T(test_every_layer_that_was_written_to), T(test_write_through),
		T(test_write_through_in_turns),          T(test_a_flush_that_fails),
		T(test_one_of_two_layers_fails),         T(test_a_signal_is_no_failure),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
