/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The root image as a read-only region of guest-physical memory. Linux sees it
 * as persistent memory (e820 type 12, /dev/pmem0) and mounts the erofs in it
 * with DAX: no block device is emulated, nothing is copied into guest RAM, and
 * all VMs of the host share one copy.
 *
 * The file must be a memfd sealed against shrinking and writing: a file that
 * got shorter would kill every VM that maps it.
 *
 * Thread: loop thread sets it up; read-only afterwards.
 * fork: the child inherits the mapping and gives it to its own VM.
 */
#pragma once

#include "vmm/core/gmem.h"

struct rom {
	uint8_t *host; /* 2 MiB aligned, PROT_READ */
	uint64_t size; /* rounded up to 2 MiB; zeros behind the image */
	uint64_t gpa;
	uint8_t *map; /* whole reservation */
	uint64_t map_size;
};

/* Maps fd (stays the caller's) and chooses the address behind ram. */
__must_check int rom_init(struct rom *rom, int fd, const struct gmem *ram, struct err *err);
void rom_free(struct rom *rom);
