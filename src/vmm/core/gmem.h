/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest RAM: one private anonymous mapping, 2 MiB aligned, seen by the guest at
 * guest-physical 0 (up to the MMIO gap at GMEM_GAP_START) and, for what does
 * not fit below, from GMEM_HIGH_START on. It is the only way to guest memory:
 * every access is checked for range and overflow here.
 *
 * A pointer from gmem_slice() stays valid as long as the gmem; what it points
 * to may change under the reader at any moment: copy once, check the copy.
 *
 * Thread: read-only after gmem_init(); any thread. fork: the child inherits the
 * mapping as copy-on-write, at the same address; nothing to do.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <stddef.h>
#include <stdint.h>

#define GMEM_GAP_START  0xc0000000ull  /* 3 GiB: devices live in [3, 4) GiB */
#define GMEM_HIGH_START 0x100000000ull /* 4 GiB */
#define GMEM_ALIGN      (2ull << 20)

struct gmem {
	uint8_t *base;
	uint64_t size;
};

/* Maps size bytes (a multiple of 2 MiB) of zeroed RAM, huge pages advised. */
__must_check int gmem_init(struct gmem *gm, uint64_t size, struct err *err);
void gmem_free(struct gmem *gm);

/* Bytes below the gap and above it. */
static inline uint64_t gmem_low_size(const struct gmem *gm)
{
	return gm->size < GMEM_GAP_START ? gm->size : GMEM_GAP_START;
}

static inline uint64_t gmem_high_size(const struct gmem *gm)
{
	return gm->size - gmem_low_size(gm);
}

/* Where the guest has the byte at this offset of base. */
static inline uint64_t gmem_gpa(const struct gmem *gm, uint64_t offset)
{
	uint64_t low = gmem_low_size(gm);

	return offset < low ? offset : GMEM_HIGH_START + (offset - low);
}

/* Host address of [gpa, gpa + len), or NULL when it is not wholly inside one piece of RAM. */
static inline void *gmem_slice(const struct gmem *gm, uint64_t gpa, uint64_t len)
{
	uint64_t low = gmem_low_size(gm), high = gmem_high_size(gm);

	if (gpa < low && len <= low - gpa)
		return gm->base + gpa;
	if (gpa >= GMEM_HIGH_START && gpa - GMEM_HIGH_START < high &&
	    len <= high - (gpa - GMEM_HIGH_START))
		return gm->base + low + (gpa - GMEM_HIGH_START);
	return NULL;
}

/* Copies out of and into guest RAM: 0 or -EFAULT. */
__must_check int gmem_read(const struct gmem *gm, uint64_t gpa, void *dst, uint64_t len);
__must_check int gmem_write(const struct gmem *gm, uint64_t gpa, const void *src, uint64_t len);
