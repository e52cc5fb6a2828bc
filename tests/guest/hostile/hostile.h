/* SPDX-License-Identifier: Apache-2.0 */
/* Where things are in the hostile guest, and its devices' registers. */
#pragma once

#include <stdint.h>

#include "vmm/virtio/virtio_spec.h"

#define MMIO_BASE 0xd0000000ull
#define VSOCK     MMIO_BASE
#define BLK       (MMIO_BASE + 0x1000)

/* Where devices may write without doing more than this guest's own work any harm. */
#define ARENA      0x4000000ull
#define ARENA_SIZE 0x2000000ull
#define RAM_END    0x8000000ull /* 128 MiB */

static inline uint32_t reg(uint64_t device, uint32_t off)
{
	return *(volatile uint32_t *)(device + off);
}

static inline void set(uint64_t device, uint32_t off, uint32_t v)
{
	*(volatile uint32_t *)(device + off) = v;
}

static inline void set_address(uint64_t device, uint32_t low, uint64_t a)
{
	set(device, low, (uint32_t)a);
	set(device, low + 4, (uint32_t)(a >> 32));
}

/*
 * driver.c: resets both devices and uses them as a driver would: a sector of the disk there and
 * back, a packet of vsock each way. 0, or a number for what did not work.
 */
uint32_t driver_works(void);
