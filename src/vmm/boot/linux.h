/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linux boot protocol, 64-bit entry: zero page, memory map, command line,
 * initial ramdisk, and the page tables and descriptors the kernel starts with
 * (Documentation/x86/boot.rst, "64-bit boot protocol").
 *
 * Thread: loop thread, before the guest runs. fork: all in guest RAM.
 */
#pragma once

#include "vmm/core/gmem.h"

#define LINUX_ZERO_PAGE   0x7000ull
#define LINUX_CMDLINE     0x20000ull
#define LINUX_CMDLINE_MAX 2048u

struct rom;

struct linux_boot {
	int kernel_fd; /* stay the caller's */
	int initrd_fd;
	const char *cmdline;
	const struct rom *root; /* may be NULL */
};

/* Loads everything; *entry is where the first vCPU starts, with RSI = LINUX_ZERO_PAGE. */
__must_check int linux_load(const struct gmem *ram, const struct linux_boot *boot, uint64_t *entry,
			    struct err *err);
