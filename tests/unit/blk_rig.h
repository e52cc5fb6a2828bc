/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block device over a layered disk, driven by the fake driver: requests are laid
 * out in guest RAM by hand, so that they can be wrong in every way.
 */
#pragma once

#include "fake_driver.h"
#include "vmm/virtio/blk.h"
#include "vmm/virtio/virtio_spec.h"

#define RIG_DISK     (64ull * LAYERS_CLUSTER)
#define RIG_SECTORS  (RIG_DISK / VIRTIO_BLK_SECTOR)
#define RIG_HEADER   (1u << 20) /* where requests lie in RAM */
#define RIG_STATUS   ((1u << 20) + 4096u)
#define RIG_DATA     (2u << 20)
#define RIG_FEATURES 0x6646u /* low word of all that the device offers */

struct rig {
	struct fake f; /* its vsock device is not used */
	struct layers disk;
	struct blk b;
	unsigned again, piled, failures;
	int failed_with; /* errno of the last failure */
};

/* Device in reset; rig_start() drives it up with the low feature word. */
void rig_init(struct rig *r);
void rig_free(struct rig *r);
void rig_start(struct rig *r, uint32_t features);

/* A header in RAM; its place. n: number of the request. */
uint64_t rig_header(struct rig *r, unsigned n, uint32_t type, uint64_t sector);

/* Header, data and status as Linux lays them out, in descriptors from 4 * n on; no notification. */
void rig_submit(struct rig *r, unsigned n, uint32_t type, uint64_t sector, uint64_t data,
		uint32_t len);
/* Status byte of request n. */
uint8_t rig_status(struct rig *r, unsigned n);

/* Submits request 0, notifies and takes it back: its status, *used the length (may be NULL). */
uint8_t rig_do(struct rig *r, uint32_t type, uint64_t sector, uint32_t len, uint32_t *used);

/* Puts a range for DISCARD or WRITE_ZEROES at RIG_DATA + 16 * i. */
void rig_range(struct rig *r, unsigned i, uint64_t sector, uint32_t sectors, uint32_t flags);

/* cmocka fixtures: *state is a started rig. */
int rig_setup(void **state);
int rig_teardown(void **state);
