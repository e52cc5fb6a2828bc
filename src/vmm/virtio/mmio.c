/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Register file and status machine of virtio-mmio version 2. Which register
 * may be written in which state is a table (write_rules), and so are the legal
 * steps of the status register. Interrupts and the drop of a broken device are
 * collected and done once, in virtio_dev_settle(). The saved form at the end of
 * the file is trusted no more than a guest: what the registers could not have
 * led to is refused.
 *
 * Thread: under the device lock, vCPU or loop thread. Fork: see mmio.h.
 */
#include "vmm/virtio/mmio.h"

#include "vmm/virtio/virtio_spec.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define ST_ACK      VIRTIO_STATUS_ACKNOWLEDGE
#define ST_DRIVER   (ST_ACK | VIRTIO_STATUS_DRIVER)
#define ST_FEATURES (ST_DRIVER | VIRTIO_STATUS_FEATURES_OK)
#define ST_RUNNING  (ST_FEATURES | VIRTIO_STATUS_DRIVER_OK)
#define ST_DEAD     (VIRTIO_STATUS_NEEDS_RESET | VIRTIO_STATUS_FAILED)

/* Legal steps forward (3.1.1); everything else but 0, FAILED and "no change" breaks the rules. */
static const uint8_t status_steps[][2] = {
	{0, ST_ACK},
	{ST_ACK, ST_DRIVER},
	{ST_DRIVER, ST_FEATURES},
	{ST_FEATURES, ST_RUNNING},
};

/* Writable registers with the status bits that must be set and must not be set. */
static const struct {
	uint16_t reg;
	uint8_t need, forbid;
} write_rules[] = {
	{VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0, 0},
	{VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0, 0},
	{VIRTIO_MMIO_QUEUE_SEL, 0, 0},
	{VIRTIO_MMIO_INTERRUPT_ACK, 0, 0},
	{VIRTIO_MMIO_STATUS, 0, 0},
	{VIRTIO_MMIO_QUEUE_NOTIFY, 0, 0},
	{VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_STATUS_DRIVER, VIRTIO_STATUS_FEATURES_OK},
	{VIRTIO_MMIO_QUEUE_READY, 0, 0}, /* has a rule of its own: write_queue_ready() */
	{VIRTIO_MMIO_QUEUE_NUM, VIRTIO_STATUS_FEATURES_OK, VIRTIO_STATUS_DRIVER_OK},
	{VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_STATUS_FEATURES_OK, VIRTIO_STATUS_DRIVER_OK},
	{VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_STATUS_FEATURES_OK, VIRTIO_STATUS_DRIVER_OK},
	{VIRTIO_MMIO_QUEUE_DRIVER_LOW, VIRTIO_STATUS_FEATURES_OK, VIRTIO_STATUS_DRIVER_OK},
	{VIRTIO_MMIO_QUEUE_DRIVER_HIGH, VIRTIO_STATUS_FEATURES_OK, VIRTIO_STATUS_DRIVER_OK},
	{VIRTIO_MMIO_QUEUE_DEVICE_LOW, VIRTIO_STATUS_FEATURES_OK, VIRTIO_STATUS_DRIVER_OK},
	{VIRTIO_MMIO_QUEUE_DEVICE_HIGH, VIRTIO_STATUS_FEATURES_OK, VIRTIO_STATUS_DRIVER_OK},
};

static void reset_device(struct virtio_dev *dev)
{
	dev->ops->reset(dev);
	dev->status = dev->kicked = 0;
	dev->dropped = false;
	dev->device_features_sel = dev->driver_features_sel = dev->queue_sel = 0;
	dev->interrupt_status = 0;
	dev->driver_features = 0;
	for (unsigned i = 0; i < dev->ops->queue_count; i++)
		virtq_reset(&dev->queue[i]);
}

void virtio_dev_init(struct virtio_dev *dev, const struct virtio_ops *ops, const struct gmem *mem,
		     const struct virtio_host *host)
{
	assert(ops->queue_count <= VIRTIO_QUEUES_MAX && ops->queue_size_max <= VIRTQ_SIZE_MAX);
	*dev = (struct virtio_dev){.ops = ops, .host = *host};
	for (unsigned i = 0; i < ops->queue_count; i++)
		virtq_init(&dev->queue[i], mem, ops->queue_size_max);
}

bool virtio_dev_active(const struct virtio_dev *dev)
{
	return (dev->status & (VIRTIO_STATUS_DRIVER_OK | ST_DEAD)) == VIRTIO_STATUS_DRIVER_OK;
}

void virtio_dev_fail(struct virtio_dev *dev)
{
	dev->faults++;
	dev->status |= VIRTIO_STATUS_NEEDS_RESET;
}

static void raise_irq(struct virtio_dev *dev, uint32_t why)
{
	dev->interrupt_status |= why;
	dev->irqs++;
	dev->host.raise_irq(dev->host.arg);
}

void virtio_dev_settle(struct virtio_dev *dev)
{
	uint32_t why = 0;

	for (unsigned i = 0; i < dev->ops->queue_count; i++)
		if (virtq_take_irq(&dev->queue[i]))
			why |= VIRTIO_INT_USED_RING;
	if ((dev->status & ST_DEAD) && !dev->dropped) {
		dev->dropped = true;
		dev->ops->reset(dev);
		/* 2.1.2: the configuration interrupt is for a driver that has reached DRIVER_OK. */
		if (dev->status & VIRTIO_STATUS_DRIVER_OK)
			why |= VIRTIO_INT_CONFIG;
	}
	if (why)
		raise_irq(dev, why);
}

static struct virtq *selected_queue(struct virtio_dev *dev)
{
	return dev->queue_sel < dev->ops->queue_count ? &dev->queue[dev->queue_sel] : NULL;
}

static uint32_t read_register(struct virtio_dev *dev, uint32_t reg)
{
	const struct virtq *q = selected_queue(dev);

	switch (reg) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return VIRTIO_MMIO_MAGIC;
	case VIRTIO_MMIO_VERSION:
		return VIRTIO_MMIO_V2;
	case VIRTIO_MMIO_DEVICE_ID:
		return dev->ops->device_id;
	case VIRTIO_MMIO_VENDOR_ID:
		return VIRTIO_MMIO_VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		if (dev->device_features_sel > 1)
			return 0;
		return (uint32_t)(dev->ops->features >> (32 * dev->device_features_sel));
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return q ? q->max : 0;
	case VIRTIO_MMIO_QUEUE_READY:
		return q ? q->ready : 0;
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		return dev->interrupt_status;
	case VIRTIO_MMIO_STATUS:
		return dev->status;
	case VIRTIO_MMIO_CONFIG_GENERATION:
		return 0; /* no device here changes its configuration */
	default:
		/* 4.2.2: a shared memory region that does not exist reads as all ones. */
		if (reg >= VIRTIO_MMIO_SHM_LEN_LOW && reg <= VIRTIO_MMIO_SHM_BASE_HIGH)
			return UINT32_MAX;
		dev->ignored++;
		return 0;
	}
}

void virtio_mmio_read(struct virtio_dev *dev, uint64_t off, void *data, unsigned len)
{
	memset(data, 0, len);
	if (off >= VIRTIO_MMIO_CONFIG) {
		off -= VIRTIO_MMIO_CONFIG;
		if (off < dev->ops->config_bytes && len <= dev->ops->config_bytes - off)
			dev->ops->config_read(dev, (uint32_t)off, data, len);
		else
			dev->ignored++;
	} else if (len == 4 && off % 4 == 0) {
		struct bytes_out o = {.p = data, .left = len};

		bytes_put(&o, read_register(dev, (uint32_t)off), 4);
	} else {
		dev->ignored++;
	}
}

static void kick_all(struct virtio_dev *dev)
{
	for (unsigned i = 0; i < dev->ops->queue_count && virtio_dev_active(dev); i++)
		dev->ops->notify(dev, i);
}

static bool features_ok(const struct virtio_dev *dev)
{
	return !(dev->driver_features & ~dev->ops->features) &&
	       (dev->driver_features & VIRTIO_F_VERSION_1);
}

static void write_status(struct virtio_dev *dev, uint32_t v)
{
	uint8_t now = dev->status & (uint8_t)~ST_DEAD;
	size_t i;

	if (v == 0) {
		reset_device(dev);
		return;
	}
	if (v & VIRTIO_STATUS_FAILED)
		dev->status |= VIRTIO_STATUS_FAILED; /* the driver has given up */
	if ((dev->status & ST_DEAD) || v == now)
		return; /* only a reset helps, or nothing changes */
	for (i = 0; i < ARRAY_SIZE(status_steps); i++)
		if (status_steps[i][0] == now && status_steps[i][1] == v)
			break;
	if (i == ARRAY_SIZE(status_steps)) {
		virtio_dev_fail(dev);
		return;
	}
	/* 3.1.1: features that do not suit are refused by not showing FEATURES_OK. */
	if (v == ST_FEATURES && !features_ok(dev)) {
		dev->ignored++;
		return;
	}
	dev->status = (uint8_t)v;
	if (v != ST_RUNNING)
		return;
	if (dev->ops->activate(dev))
		virtio_dev_fail(dev);
	/* A notification may have come before DRIVER_OK. */
	kick_all(dev);
}

static void write_queue_ready(struct virtio_dev *dev, uint32_t v)
{
	struct virtq *q = selected_queue(dev);

	if ((dev->status & ST_DEAD) || (v == 0 && (!q || !q->ready)))
		return; /* drivers write 0 when they clean up */
	if (!q || v > 1 || !(dev->status & VIRTIO_STATUS_FEATURES_OK) ||
	    (dev->status & VIRTIO_STATUS_DRIVER_OK) || (v && q->ready)) {
		virtio_dev_fail(dev);
		return;
	}
	if (v == 0)
		virtq_reset(q);
	else if (virtq_enable(q))
		virtio_dev_fail(dev);
}

static void set_half(uint64_t *addr, uint32_t v, bool high)
{
	*addr = high ? (*addr & UINT32_MAX) | (uint64_t)v << 32 : (*addr >> 32 << 32) | v;
}

/* QUEUE_NUM and the six address registers. */
static void write_queue_setup(struct virtio_dev *dev, uint32_t reg, uint32_t v)
{
	struct virtq *q = selected_queue(dev);

	if (!q || q->ready || (reg == VIRTIO_MMIO_QUEUE_NUM && v > q->max)) {
		virtio_dev_fail(dev);
		return;
	}
	switch (reg) {
	case VIRTIO_MMIO_QUEUE_NUM:
		q->size = (uint16_t)v;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		set_half(&q->desc_gpa, v, reg == VIRTIO_MMIO_QUEUE_DESC_HIGH);
		break;
	case VIRTIO_MMIO_QUEUE_DRIVER_LOW:
	case VIRTIO_MMIO_QUEUE_DRIVER_HIGH:
		set_half(&q->avail_gpa, v, reg == VIRTIO_MMIO_QUEUE_DRIVER_HIGH);
		break;
	default:
		set_half(&q->used_gpa, v, reg == VIRTIO_MMIO_QUEUE_DEVICE_HIGH);
		break;
	}
}

static void write_notify(struct virtio_dev *dev, uint32_t q)
{
	dev->notifies++;
	if (q >= dev->ops->queue_count) {
		virtio_dev_fail(dev);
	} else if (!virtio_dev_active(dev)) {
		dev->ignored++; /* old drivers notify before DRIVER_OK; kick_all() makes up for it
				 */
	} else if (dev->host.defer_notify) {
		dev->kicked |= (uint8_t)(1u << q);
		dev->host.defer_notify(dev->host.arg);
	} else {
		dev->ops->notify(dev, q);
	}
}

static void write_driver_features(struct virtio_dev *dev, uint32_t v)
{
	if (dev->driver_features_sel <= 1)
		set_half(&dev->driver_features, v, dev->driver_features_sel);
	else if (v)
		virtio_dev_fail(dev); /* bits that no device has */
}

static void write_register(struct virtio_dev *dev, uint32_t reg, uint32_t v)
{
	switch (reg) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		dev->device_features_sel = v;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		dev->driver_features_sel = v;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		write_driver_features(dev, v);
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		dev->queue_sel = v;
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		write_queue_ready(dev, v);
		break;
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		write_notify(dev, v);
		break;
	case VIRTIO_MMIO_INTERRUPT_ACK:
		dev->interrupt_status &= ~v;
		break;
	case VIRTIO_MMIO_STATUS:
		write_status(dev, v);
		break;
	default:
		write_queue_setup(dev, reg, v);
		break;
	}
}

void virtio_mmio_write(struct virtio_dev *dev, uint64_t off, const void *data, unsigned len)
{
	struct bytes_in in = {.p = data, .left = len};
	uint32_t v = bytes_get32(&in);
	size_t i;

	for (i = 0; i < ARRAY_SIZE(write_rules); i++)
		if (write_rules[i].reg == off)
			break;
	if (len != 4 || i == ARRAY_SIZE(write_rules))
		dev->ignored++; /* configuration space is read-only, too */
	else if ((dev->status & write_rules[i].need) != write_rules[i].need ||
		 (dev->status & write_rules[i].forbid))
		virtio_dev_fail(dev);
	else
		write_register(dev, (uint32_t)off, v);
	virtio_dev_settle(dev);
}

void virtio_dev_run_kicks(struct virtio_dev *dev)
{
	for (unsigned i = 0; i < dev->ops->queue_count; i++) {
		if (!(dev->kicked & 1u << i))
			continue;
		dev->kicked &= (uint8_t) ~(1u << i);
		if (virtio_dev_active(dev))
			dev->ops->notify(dev, i);
	}
	virtio_dev_settle(dev);
}

void virtio_dev_resume(struct virtio_dev *dev)
{
	kick_all(dev);
	virtio_dev_settle(dev);
	/* The edge may have been lost on the way; a spurious one is harmless. */
	if (dev->interrupt_status)
		raise_irq(dev, 0);
}

int virtio_dev_fork_child(struct virtio_dev *dev)
{
	dev->kicked = 0; /* the parent's loop was to do these; resume does them all */
	return dev->ops->fork_child(dev);
}

#define STATE_MAGIC   0x314f4956u /* "VIO1" */
#define STATE_VERSION 1u

int virtio_dev_save(const struct virtio_dev *dev, uint8_t *buf, size_t cap)
{
	struct bytes_out o = {.p = buf, .left = cap}, length;

	bytes_put(&o, STATE_MAGIC, 4);
	bytes_put(&o, STATE_VERSION, 2);
	bytes_put(&o, dev->ops->device_id, 2);
	length = o; /* of the whole: known at the end */
	bytes_put(&o, 0, 4);
	bytes_put(&o, dev->status, 1);
	bytes_put(&o, dev->interrupt_status, 4);
	bytes_put(&o, dev->device_features_sel, 4);
	bytes_put(&o, dev->driver_features_sel, 4);
	bytes_put(&o, dev->queue_sel, 4);
	bytes_put(&o, dev->driver_features, 8);
	for (unsigned i = 0; i < dev->ops->queue_count; i++)
		virtq_save(&dev->queue[i], &o);
	dev->ops->save(dev, &o);
	if (o.bad)
		return -ENOSPC;
	bytes_put(&length, cap - o.left, 4);
	return (int)(cap - o.left);
}

/* True for registers that the status machine can have produced. */
static bool registers_plausible(const struct virtio_dev *dev)
{
	uint8_t plain = dev->status & (uint8_t)~ST_DEAD;
	bool known = plain == 0;

	for (size_t i = 0; i < ARRAY_SIZE(status_steps); i++)
		known = known || status_steps[i][1] == plain;
	if (!known || (dev->interrupt_status & ~(VIRTIO_INT_USED_RING | VIRTIO_INT_CONFIG)))
		return false;
	if (plain & VIRTIO_STATUS_FEATURES_OK)
		return features_ok(dev);
	for (unsigned i = 0; i < dev->ops->queue_count; i++)
		if (dev->queue[i].ready)
			return false; /* queues are set up after FEATURES_OK only */
	return true;
}

static int load_fields(struct virtio_dev *dev, struct bytes_in *in, size_t len)
{
	if (bytes_get32(in) != STATE_MAGIC || bytes_get16(in) != STATE_VERSION ||
	    bytes_get16(in) != dev->ops->device_id || bytes_get32(in) != len)
		return -EPROTO;
	dev->status = bytes_get8(in);
	dev->interrupt_status = bytes_get32(in);
	dev->device_features_sel = bytes_get32(in);
	dev->driver_features_sel = bytes_get32(in);
	dev->queue_sel = bytes_get32(in);
	dev->driver_features = bytes_get(in, 8);
	for (unsigned i = 0; i < dev->ops->queue_count; i++)
		if (virtq_load(&dev->queue[i], in))
			return -EPROTO;
	if (in->bad || !registers_plausible(dev) || dev->ops->load(dev, in))
		return -EPROTO;
	if (in->bad || in->left)
		return -EPROTO;
	return virtio_dev_active(dev) && dev->ops->activate(dev) ? -EPROTO : 0;
}

int virtio_dev_load(struct virtio_dev *dev, const uint8_t *buf, size_t len)
{
	struct bytes_in in = {.p = buf, .left = len};

	if (load_fields(dev, &in, len)) {
		reset_device(dev);
		return -EPROTO;
	}
	dev->dropped = dev->status & ST_DEAD; /* its drop was done before it was saved */
	return 0;
}
