/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request of the block device, for every chain that the walk (queue.c) can give
 * and every content of its header and ranges, in memory that may change between
 * any two loads; for every feature set that was negotiated, and for the smallest
 * disk and the largest. What is copied fits where it goes, no arithmetic is
 * undefined, and what reaches the disk begins on it and is no longer than a
 * request may be. (That it ends on it, too, needs relations that intervals do
 * not have: it is for tests/fuzz and tests/unit.)
 *
 * The disk and the queue are played; they do what their headers say.
 */
#include "shim.h"

#include "vmm/virtio/blk_request.c"

static volatile uint8_t guest;
static unsigned answered;

void virtq_read(const struct virtq_chain *ch, uint32_t off, void *dst, uint32_t len)
{
	uint8_t *p = dst;

	//@ assert len <= ch->out_len && off <= ch->out_len - len;
	/* BROKEN: a byte more than was asked for. */
#ifdef BROKEN
	len++;
#endif
	/* Each byte is loaded once, and is any. */
	for (uint32_t i = 0; i < len; i++)
		p[i] = guest;
}

void virtq_write(const struct virtq_chain *ch, uint32_t off, const void *src, uint32_t len)
{
	const volatile uint8_t *p = src;

	(void)ch;
	//@ assert off < VIRTQ_CHAIN_BYTES_MAX && 1 <= len <= VIRTIO_BLK_ID_BYTES;
	for (uint32_t i = 0; i < len; i++)
		(void)p[i];
}

int virtq_slice(const struct virtq_chain *ch, bool writable, uint32_t off, uint32_t len,
		struct iovec out[VIRTQ_SIZE_MAX])
{
	(void)ch;
	(void)writable;
	(void)out;
	//@ assert off <= VIRTIO_BLK_HDR_BYTES && 1 <= len <= BLK_REQUEST_MAX;
	return Frama_C_interval(1, VIRTQ_SIZE_MAX);
}

void virtq_complete(struct virtq *q, const struct virtq_chain *ch, uint32_t len)
{
	(void)q;
	(void)ch;
	//@ assert len <= VIRTQ_CHAIN_BYTES_MAX;
	answered++;
}

static int done(void)
{
	return any_bool() ? 0 : -Frama_C_interval(1, 4095);
}

int layers_read(const struct layers *l, uint64_t off, struct iovec *iov, int n)
{
	(void)iov;
	//@ assert off <= l->size && 1 <= n <= VIRTQ_SIZE_MAX;
	return done();
}

/* Of all ranges of a request together. */
static void copy_up(struct layers *l)
{
	l->copied_up = (uint64_t)Frama_C_interval(0, 4 * BLK_RANGES_MAX * LAYERS_CLUSTER);
}

int layers_write(struct layers *l, uint64_t off, struct iovec *iov, int n)
{
	copy_up(l);
	return layers_read(l, off, iov, n);
}

int layers_zero(struct layers *l, uint64_t off, uint64_t len)
{
	copy_up(l);
	//@ assert off <= l->size && 1 <= len <= (uint64_t)BLK_RANGE_SECTORS * VIRTIO_BLK_SECTOR;
	return done();
}

void layers_discard(struct layers *l, uint64_t off, uint64_t len)
{
	(void)layers_zero(l, off, len);
}

int layers_flush(struct layers *l)
{
	(void)l;
	return done();
}

static void again(void *arg)
{
	(void)arg;
}

static void failed(void *arg, int errnum)
{
	(void)arg;
	//@ assert errnum > 0;
}

static struct layers disk;
static struct blk b;

/* A chain of so many bytes for the device to read. */
static void request(uint32_t least, uint32_t most)
{
	int64_t cost;

	b.chain.out_len = (uint32_t)Frama_C_unsigned_int_interval(least, most);
	b.chain.in_len = (uint32_t)Frama_C_unsigned_int_interval(0, VIRTQ_CHAIN_BYTES_MAX);
	cost = blk_request(&b);
	//@ assert cost == -EPROTO || cost >= BLK_REQUEST_COST;
	//@ assert answered == (cost >= 0);
	/* The next one begins as this one did: nothing need be followed twice. */
	answered = 0;
	b.bytes_read = b.bytes_written = b.refused = b.io_errors = b.no_space = 0;
}

static void any_request(uint64_t disk_size)
{
	uint32_t at = VIRTIO_BLK_HDR_BYTES;

	disk.size = disk_size;
	b.disk = &disk;
	b.events = (struct blk_events){.again = again, .failed = failed};
	b.dev.driver_features = any64();
#ifdef BROKEN
	request(at + BLK_RANGES_MAX * VIRTIO_BLK_RANGE_BYTES,
		at + BLK_RANGES_MAX * VIRTIO_BLK_RANGE_BYTES);
	return;
#endif
	request(0, at - 1);
	/* Ranges are counted by the length: each count by itself, and what lies between. */
	for (unsigned n = 0; n <= BLK_RANGES_MAX + 1; n++, at += VIRTIO_BLK_RANGE_BYTES) {
		request(at, at);
		request(at + 1, at + VIRTIO_BLK_RANGE_BYTES - 1);
	}
	request(at, VIRTQ_CHAIN_BYTES_MAX);
}

int main(void)
{
	any_request(LAYERS_CLUSTER);
	any_request(LAYERS_SIZE_MAX);
	return 0;
}
