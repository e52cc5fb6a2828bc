/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of virtio-blk (virtio 1.2, section 5.2.6). The header and the ranges
 * are copied out of guest memory before they are looked at; how the driver cuts
 * a request into descriptors is of no importance (2.7.4). Data goes between guest
 * memory and the disk's files without a copy.
 *
 * Thread: under the device lock. Fork: no state of its own.
 */
#include "vmm/virtio/blk_request.h"

#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <string.h>

/* A request, as far as it is known from its header and the lengths of its chain. */
struct request {
	uint32_t type;
	uint64_t sector;
	uint32_t out, in; /* bytes of data, without header and status */
};

static bool negotiated(const struct blk *b, uint64_t feature)
{
	return b->dev.driver_features & feature;
}

/* The sectors lie on the disk. */
static bool inside(const struct blk *b, uint64_t sector, uint64_t sectors)
{
	uint64_t capacity = b->disk->size / VIRTIO_BLK_SECTOR;

	return sector <= capacity && sectors <= capacity - sector;
}

/* Status byte for the result of an operation of the disk. */
static uint8_t status_of(struct blk *b, int rc)
{
	if (rc == 0)
		return VIRTIO_BLK_S_OK;
	b->io_errors++;
	if (rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG)
		b->no_space++;
	b->events.failed(b->events.arg, -rc);
	return VIRTIO_BLK_S_IOERR;
}

static uint8_t refuse(struct blk *b, uint8_t status)
{
	b->refused++;
	return status;
}

static uint8_t do_transfer(struct blk *b, const struct request *r)
{
	bool write = r->type == VIRTIO_BLK_T_OUT;
	uint32_t len = write ? r->out : r->in;
	uint64_t off = r->sector * VIRTIO_BLK_SECTOR;
	int n, rc;

	if ((write ? r->in : r->out) || len == 0 || len % VIRTIO_BLK_SECTOR ||
	    len > BLK_REQUEST_MAX || !inside(b, r->sector, len / VIRTIO_BLK_SECTOR))
		return refuse(b, VIRTIO_BLK_S_IOERR);
	n = virtq_slice(&b->chain, !write, write ? VIRTIO_BLK_HDR_BYTES : 0, len, b->data);
	if (!write) {
		b->bytes_read += len;
		return status_of(b, layers_read(b->disk, off, b->data, n));
	}
	rc = layers_write(b->disk, off, b->data, n);
	if (rc == 0 && !negotiated(b, VIRTIO_BLK_F_FLUSH))
		rc = layers_flush(b->disk);
	if (rc == 0)
		b->bytes_written += len;
	return status_of(b, rc);
}

static uint8_t do_flush(struct blk *b, const struct request *r)
{
	if (!negotiated(b, VIRTIO_BLK_F_FLUSH))
		return refuse(b, VIRTIO_BLK_S_UNSUPP);
	if (r->out || r->in)
		return refuse(b, VIRTIO_BLK_S_IOERR);
	return status_of(b, layers_flush(b->disk));
}

/* DISCARD and WRITE_ZEROES: all ranges are checked before the first is touched. */
static uint8_t do_ranges(struct blk *b, const struct request *r)
{
	bool zero = r->type == VIRTIO_BLK_T_WRITE_ZEROES;
	uint8_t raw[BLK_RANGES_MAX * VIRTIO_BLK_RANGE_BYTES];
	struct {
		uint64_t sector;
		uint32_t sectors;
	} range[BLK_RANGES_MAX];
	struct bytes_in in = {.p = raw, .left = r->out};
	unsigned int n = r->out / VIRTIO_BLK_RANGE_BYTES;
	int rc = 0;

	b->freed = 0;
	if (!negotiated(b, zero ? VIRTIO_BLK_F_WRITE_ZEROES : VIRTIO_BLK_F_DISCARD))
		return refuse(b, VIRTIO_BLK_S_UNSUPP);
	if (r->in || n == 0 || n > BLK_RANGES_MAX || r->out % VIRTIO_BLK_RANGE_BYTES)
		return refuse(b, VIRTIO_BLK_S_IOERR);
	virtq_read(&b->chain, VIRTIO_BLK_HDR_BYTES, raw, r->out);
	for (unsigned int i = 0; i < n; i++) {
		uint32_t flags;

		range[i].sector = bytes_get(&in, 8);
		range[i].sectors = bytes_get32(&in);
		flags = bytes_get32(&in);
		/* 5.2.6.2: of the flags only WRITE_ZEROES has one. */
		if (flags & ~(zero ? VIRTIO_BLK_UNMAP : 0u))
			return refuse(b, VIRTIO_BLK_S_UNSUPP);
		if (range[i].sectors == 0 || range[i].sectors > BLK_RANGE_SECTORS ||
		    !inside(b, range[i].sector, range[i].sectors))
			return refuse(b, VIRTIO_BLK_S_IOERR);
	}
	for (unsigned int i = 0; i < n && rc == 0; i++) {
		uint64_t off = range[i].sector * VIRTIO_BLK_SECTOR;
		uint64_t len = (uint64_t)range[i].sectors * VIRTIO_BLK_SECTOR;

		if (zero)
			rc = layers_zero(b->disk, off, len);
		else
			layers_discard(b->disk, off, len);
		b->freed += len;
	}
	return status_of(b, rc);
}

static uint8_t do_get_id(struct blk *b, const struct request *r)
{
	static const char id[VIRTIO_BLK_ID_BYTES] = "podflare-scratch";

	if (r->out || r->in < sizeof(id))
		return refuse(b, VIRTIO_BLK_S_IOERR);
	virtq_write(&b->chain, 0, id, sizeof(id));
	return VIRTIO_BLK_S_OK;
}

static uint8_t carry_out(struct blk *b, const struct request *r)
{
	switch (r->type) {
	case VIRTIO_BLK_T_IN:
	case VIRTIO_BLK_T_OUT:
		return do_transfer(b, r);
	case VIRTIO_BLK_T_FLUSH:
		return do_flush(b, r);
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return do_ranges(b, r);
	case VIRTIO_BLK_T_GET_ID:
		return do_get_id(b, r);
	default:
		return refuse(b, VIRTIO_BLK_S_UNSUPP);
	}
}

/* What it took, in bytes of the budget: see blk.h. */
static int64_t cost(const struct blk *b, const struct request *r)
{
	int64_t moved = BLK_REQUEST_COST + (int64_t)r->out + r->in;

	switch (r->type) {
	case VIRTIO_BLK_T_FLUSH:
		return BLK_BUDGET;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return BLK_REQUEST_COST +
		       (int64_t)LAYERS_CLUSTER * (r->out / VIRTIO_BLK_RANGE_BYTES) +
		       (int64_t)(b->freed / BLK_FREE_COST);
	case VIRTIO_BLK_T_OUT:
		return negotiated(b, VIRTIO_BLK_F_FLUSH) ? moved : BLK_BUDGET;
	default:
		return moved;
	}
}

int64_t blk_request(struct blk *b)
{
	struct virtq_chain *ch = &b->chain;
	uint8_t header[VIRTIO_BLK_HDR_BYTES], status;
	struct bytes_in in = {.p = header, .left = sizeof(header)};
	struct request r;
	uint32_t written;

	if (ch->out_len < sizeof(header) || ch->in_len < 1)
		return -EPROTO;
	virtq_read(ch, 0, header, sizeof(header));
	r.type = bytes_get32(&in);
	bytes_get32(&in); /* reserved */
	r.sector = bytes_get(&in, 8);
	r.out = ch->out_len - (uint32_t)sizeof(header);
	r.in = ch->in_len - 1;
	b->disk->copied_up = 0;
	status = carry_out(b, &r);
	virtq_write(ch, r.in, &status, 1);
	/*
	 * 2.7.8.2: so many bytes at least, counted from the first; after a failure nothing is known
	 * of the data. An ID leaves the rest of a longer buffer alone.
	 */
	written = status == VIRTIO_BLK_S_OK || r.in == 0 ? ch->in_len : 0;
	if (written && r.in > VIRTIO_BLK_ID_BYTES && r.type == VIRTIO_BLK_T_GET_ID)
		written = VIRTIO_BLK_ID_BYTES;
	virtq_complete(&b->dev.queue[VIRTIO_BLK_QUEUE], ch, written);
	return cost(b, &r) + (int64_t)b->disk->copied_up;
}
