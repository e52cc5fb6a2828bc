/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-mmio transport, version 2 (virtio 1.2, section 4.2), and what every
 * virtio device of this VMM has in common.
 *
 * A device embeds `struct virtio_dev` as its first member and supplies one
 * `static const struct virtio_ops`. The machine maps a window of
 * VIRTIO_MMIO_WINDOW bytes to virtio_mmio_read()/virtio_mmio_write() and is
 * called back through `struct virtio_host`.
 *
 * Rules that the transport keeps for all devices:
 * - The status register moves only ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, one step at
 *   a time; 0 resets. VERSION_1 is required, unknown feature bits are refused.
 * - Queue registers can be written between FEATURES_OK and DRIVER_OK only, and not while the
 *   queue is ready.
 * - A guest that breaks a rule gets DEVICE_NEEDS_RESET (and a config interrupt once DRIVER_OK);
 *   the device does nothing more until reset. Accesses of a wrong width or to unknown registers
 *   are ignored. Both are counted; neither ends the VMM.
 *
 * Thread: every function here is called with the VM's device lock held, from a vCPU thread or
 * the loop thread alike. Nothing allocates or blocks. Callbacks run under the same lock and must
 * not call back into the device.
 *
 * Fork: transport and queues are plain memory. The child calls virtio_dev_fork_child() early, and
 * virtio_dev_resume() after vCPU and interrupt state are in place and before any vCPU runs; the
 * parent does nothing.
 */
#pragma once

#include "lib/cleanup.h"
#include "vmm/virtio/bytes.h"
#include "vmm/virtio/queue.h"

#include <stdbool.h>
#include <stdint.h>

#define VIRTIO_QUEUES_MAX 4u

struct virtio_dev;

/* All hooks are set. `activate` to `notify` see a device whose registers are consistent. */
struct virtio_ops {
	uint32_t device_id;
	uint64_t features; /* offered; contains VIRTIO_F_VERSION_1 */
	uint16_t queue_count;
	uint16_t queue_size_max;
	uint32_t config_bytes;
	/* DRIVER_OK is being set: 0, or negative when the set-up is unusable (NEEDS_RESET then). */
	int (*activate)(struct virtio_dev *dev);
	/* The driver has touched queue q; also called without reason. Only while active. */
	void (*notify)(struct virtio_dev *dev, unsigned q);
	/* len bytes of the device's own configuration; the range lies inside config_bytes. */
	void (*config_read)(struct virtio_dev *dev, uint32_t off, void *data, uint32_t len);
	/* The driver is gone: it has reset the device, or the device was marked broken. */
	void (*reset)(struct virtio_dev *dev);
	void (*save)(const struct virtio_dev *dev, struct bytes_out *o);
	/* 0 or -EPROTO; the transport resets the device after a failure. */
	int (*load)(struct virtio_dev *dev, struct bytes_in *in);
	/* Drops what belongs to the parent and makes kernel objects anew: 0 or -errno. */
	int (*fork_child)(struct virtio_dev *dev);
};

/* What the machine gives to a device. */
struct virtio_host {
	void (*raise_irq)(void *arg); /* one edge on the device's interrupt line */
	/* NULL: notifications are processed inline. Else: arrange a call of virtio_dev_run_kicks().
	 */
	void (*defer_notify)(void *arg);
	void *arg;
};

struct virtio_dev {
	const struct virtio_ops *ops;
	struct virtio_host host;
	uint8_t status;
	uint8_t kicked; /* bit per queue: notified, not yet processed (deferred only) */
	bool dropped;   /* ops->reset has run since the device broke */
	uint32_t device_features_sel, driver_features_sel, queue_sel;
	uint32_t interrupt_status;
	uint64_t driver_features;
	struct virtq queue[VIRTIO_QUEUES_MAX];
	/* Counters since init, for CTL_STAT_*; not part of the saved state. */
	uint64_t notifies, irqs, faults, ignored;
};

void virtio_dev_init(struct virtio_dev *dev, const struct virtio_ops *ops, const struct gmem *mem,
		     const struct virtio_host *host);

/* Guest access at offset off of the window. data: len bytes, little-endian, always filled. */
void virtio_mmio_read(struct virtio_dev *dev, uint64_t off, void *data, unsigned len);
void virtio_mmio_write(struct virtio_dev *dev, uint64_t off, const void *data, unsigned len);

/* Processes the notifications that were deferred. */
void virtio_dev_run_kicks(struct virtio_dev *dev);

/* DRIVER_OK, and neither broken nor given up by the driver. */
bool virtio_dev_active(const struct virtio_dev *dev);

/* For devices: the guest broke a rule; stop. Takes effect in the next virtio_dev_settle(). */
void virtio_dev_fail(struct virtio_dev *dev);

/* For devices, at the end of every entry point: interrupts that are due, drop of a broken device.
 */
void virtio_dev_settle(struct virtio_dev *dev);

/* Most bytes that virtio_dev_save() writes for the devices of this VMM. */
#define VIRTIO_STATE_MAX 16384u

/*
 * Device state as explicit little-endian fields with magic, version and length; a checksum is
 * the business of the container. Returns the length or -ENOSPC.
 */
__must_check int virtio_dev_save(const struct virtio_dev *dev, uint8_t *buf, size_t cap);

/*
 * Takes over a saved state into a device fresh from init, over the guest RAM of the same moment.
 * Checks everything as if hostile: 0, or -EPROTO and the device is as after init. The caller
 * calls virtio_dev_resume() when interrupts can be delivered.
 */
__must_check int virtio_dev_load(struct virtio_dev *dev, const uint8_t *buf, size_t len);

/* Processes all queues once and raises the interrupt again if one was pending. */
void virtio_dev_resume(struct virtio_dev *dev);

/*
 * In a forked child: the device's own hook, which needs no VM. 0 or -errno. virtio_dev_resume()
 * follows, and does what the parent's loop was still to do.
 */
__must_check int virtio_dev_fork_child(struct virtio_dev *dev);
