/* SPDX-License-Identifier: Apache-2.0 */
/* The beginning of a driver that keeps the rules, for tests that play one. */
#pragma once

#include "vmm/virtio/mmio.h"
#include "vmm/virtio/virtio_spec.h"

static inline void driver_write(struct virtio_dev *dev, uint64_t reg, uint32_t v)
{
	virtio_mmio_write(dev, reg, &v, sizeof(v));
}

/* From a reset to FEATURES_OK, with VERSION_1 and these of the lower half. */
static inline void driver_negotiate(struct virtio_dev *dev, uint64_t features)
{
	driver_write(dev, VIRTIO_MMIO_STATUS, 0);
	driver_write(dev, VIRTIO_MMIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE);
	driver_write(dev, VIRTIO_MMIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	driver_write(dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	driver_write(dev, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(VIRTIO_F_VERSION_1 >> 32));
	driver_write(dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	driver_write(dev, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
	driver_write(dev, VIRTIO_MMIO_STATUS,
		     VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK);
}
