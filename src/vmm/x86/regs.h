/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registers with which the first vCPU enters a 64-bit kernel: long mode, paging
 * on with the first GiB identity-mapped, flat segments. The others wait for
 * their start-up interrupt, as KVM creates them.
 *
 * Thread: loop thread, before the vCPU runs. fork: tables in guest RAM.
 */
#pragma once

#include "vmm/core/gmem.h"

/* Writes page tables and GDT into guest RAM. */
__must_check int regs_write_tables(const struct gmem *ram, struct err *err);

/* Sets segments, control registers, FPU, RIP = entry, RSI = rsi. */
__must_check int regs_init_boot(int vcpu_fd, uint64_t entry, uint64_t rsi, struct err *err);
