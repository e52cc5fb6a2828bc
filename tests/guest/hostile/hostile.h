/* SPDX-License-Identifier: Apache-2.0 */
/* Where things are in the hostile guest, its devices' registers, and what its files share. */
#pragma once

#include <stdint.h>

#include "proto/guest.h"
#include "vmm/virtio/virtio_spec.h"

#define MMIO_BASE 0xd0000000ull
#define VSOCK     MMIO_BASE
#define BLK       (MMIO_BASE + 0x1000)

/* Where devices may write without doing more than this guest's own work any harm. */
#define ARENA      0x4000000ull
#define ARENA_SIZE 0x2000000ull
#define RAM_END    0x8000000ull /* 128 MiB */
#define IOAPIC     0xfec00000ull

#define GUEST_CID 3

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

/* Of hostile.c: where the root image is. */
extern uint64_t rom;

/* The next number of this processor's generator; one below n. */
uint64_t next(void);
uint32_t any(uint32_t n);

/* What is counted, how often it was done. */
enum what {
	DRIVERS,
	BLK_RUNS, /* of these: a device runs after it */
	VSOCK_RUNS,
	NOTIFIES,
	BLK_CHAINS, /* of these: a device has used a chain */
	VSOCK_CHAINS,
	REGISTERS,
	PORTS,
	MEMORY,
	IOAPICS,
	HYPERCALLS,
	WHATS
};
void count(enum what w);

/* On the console, with a number behind. */
void say(const char *text, uint32_t n);

/*
 * Of queues.c: what a driver does, in a driver's order, with what no driver would say: each time in
 * every 256th place or so, or in every 8th.
 */
void begin_like_a_driver(uint64_t device);
/*
 * Makes a chain, maybe, and has the device look at one of its queues. What the device says then
 * tells whether it has used any.
 */
void notify(uint64_t device);

/*
 * Of driver.c: resets both devices and uses them as a driver would: a sector of the disk there and
 * back, a packet of vsock each way. 0, or a number for what did not work.
 */
uint32_t driver_works(void);

/*
 * Of driver.c: packets of vsock without an end, all of them right, as fast as the device takes
 * them; says how many now and then. Comes back with a number when one is not answered as it should
 * be.
 */
uint32_t driver_floods(void);
