/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads an uncompressed 64-bit kernel (vmlinux) into guest RAM.
 * The file is checked as if it were hostile: it may come from a download.
 * Thread: loop thread, before the guest runs. fork: no state.
 */
#pragma once

#include "vmm/core/gmem.h"

struct elf_kernel {
	uint64_t entry; /* guest-physical address of the 64-bit entry point */
	uint64_t end;   /* first byte behind the last segment */
};

/* Copies every PT_LOAD segment of fd (stays the caller's) to its physical address. */
__must_check int elf_load_kernel(int fd, const struct gmem *ram, struct elf_kernel *out,
				 struct err *err);
