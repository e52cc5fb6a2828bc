/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block device as the machine sees it: configuration, hooks of the transport
 * and the budget of one stay under the lock. Requests: blk_request.c.
 *
 * Thread: under the device lock. Fork: see blk.h.
 */
#include "vmm/virtio/blk.h"

#include "vmm/virtio/blk_request.h"
#include "vmm/virtio/virtio_spec.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define QUEUE_SIZE 256

static_assert((uint64_t)BLK_SEGMENTS_MAX * BLK_SEGMENT_MAX == BLK_REQUEST_MAX, "limits");
static_assert(BLK_SEGMENTS_MAX + 2 <= QUEUE_SIZE, "header and status have descriptors, too");
static_assert(BLK_REQUEST_MAX < VIRTQ_CHAIN_BYTES_MAX, "the queue lets it through");

static struct blk *blk_of(struct virtio_dev *dev)
{
	return (struct blk *)(void *)dev;
}

/* What is waiting, within the budget. 0, or -errno: the driver has broken the rules. */
static int carry_out(struct blk *b)
{
	struct virtq *q = &b->dev.queue[VIRTIO_BLK_QUEUE];
	int64_t left = BLK_BUDGET;
	int rc;

	while ((rc = virtq_peek(q, &b->chain)) > 0) {
		int64_t cost;

		if (left <= 0 || b->held) {
			b->events.again(b->events.arg);
			return 0;
		}
		cost = blk_request(b);
		if (cost < 0)
			return (int)cost;
		left -= cost;
	}
	return rc;
}

static void run(struct blk *b)
{
	if (carry_out(b) < 0)
		virtio_dev_fail(&b->dev);
	if (layers_wants_flatten(b->disk))
		b->events.piled(b->events.arg);
}

void blk_continue(struct blk *b)
{
	if (virtio_dev_active(&b->dev))
		run(b);
	virtio_dev_settle(&b->dev);
}

void blk_hold(struct blk *b, bool held)
{
	b->held = held;
}

static int activate(struct virtio_dev *dev)
{
	return dev->queue[VIRTIO_BLK_QUEUE].ready ? 0 : -EPROTO;
}

static void notify(struct virtio_dev *dev, unsigned q)
{
	(void)q; /* there is one */
	run(blk_of(dev));
}

static void config_read(struct virtio_dev *dev, uint32_t off, void *data, uint32_t len)
{
	const uint32_t cluster = LAYERS_CLUSTER / VIRTIO_BLK_SECTOR;
	uint8_t config[VIRTIO_BLK_CONFIG_BYTES];
	struct bytes_out o = {.p = config, .left = sizeof(config)};

	bytes_put(&o, blk_of(dev)->disk->size / VIRTIO_BLK_SECTOR, 8); /* capacity */
	bytes_put(&o, BLK_SEGMENT_MAX, 4);                             /* size_max */
	bytes_put(&o, BLK_SEGMENTS_MAX, 4);                            /* seg_max */
	bytes_put(&o, 0, 4);                                           /* geometry: none */
	bytes_put(&o, VIRTIO_BLK_SECTOR, 4);                           /* blk_size */
	bytes_put(&o, 3, 1);                 /* physical_block_exp: pages of the host, 4 KiB */
	bytes_put(&o, 0, 1);                 /* alignment_offset */
	bytes_put(&o, 8, 2);                 /* min_io_size, in blocks: such a page */
	bytes_put(&o, cluster, 4);           /* opt_io_size, in blocks: nothing to copy up */
	bytes_put(&o, 0, 4);                 /* writeback, num_queues: not offered */
	bytes_put(&o, BLK_RANGE_SECTORS, 4); /* max_discard_sectors */
	bytes_put(&o, BLK_RANGES_MAX, 4);    /* max_discard_seg */
	bytes_put(&o, cluster, 4);           /* discard_sector_alignment: what gives space back */
	bytes_put(&o, BLK_RANGE_SECTORS, 4); /* max_write_zeroes_sectors */
	bytes_put(&o, BLK_RANGES_MAX, 4);    /* max_write_zeroes_seg */
	bytes_put(&o, 1, 4);                 /* write_zeroes_may_unmap, 3 unused */
	assert(!o.bad && o.left == 0);
	memcpy(data, config + off, len);
}

static void reset(struct virtio_dev *dev)
{
	(void)dev; /* the disk does not care who drives it */
}

static void save(const struct virtio_dev *dev, struct bytes_out *o)
{
	bytes_put(o, ((const struct blk *)(const void *)dev)->disk->size, 8);
}

static int load(struct virtio_dev *dev, struct bytes_in *in)
{
	return bytes_get(in, 8) == blk_of(dev)->disk->size ? 0 : -EPROTO;
}

static int fork_child(struct virtio_dev *dev)
{
	(void)dev; /* the disk has its own top by now: see blk.h */
	return 0;
}

static const struct virtio_ops blk_ops = {
	.device_id = VIRTIO_ID_BLOCK,
	.features = VIRTIO_F_VERSION_1 | VIRTIO_BLK_F_SIZE_MAX | VIRTIO_BLK_F_SEG_MAX |
		    VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_TOPOLOGY |
		    VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES,
	.queue_count = 1,
	.queue_size_max = QUEUE_SIZE,
	.config_bytes = VIRTIO_BLK_CONFIG_BYTES,
	.activate = activate,
	.notify = notify,
	.config_read = config_read,
	.reset = reset,
	.save = save,
	.load = load,
	.fork_child = fork_child,
};

void blk_init(struct blk *b, const struct gmem *mem, const struct virtio_host *host,
	      struct layers *disk, const struct blk_events *events)
{
	memset(b, 0, sizeof(*b));
	virtio_dev_init(&b->dev, &blk_ops, mem, host);
	b->disk = disk;
	b->events = *events;
}
