/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The limits of a VM's control group, in numbers and as the kernel wants them
 * written. A VMM cannot take more memory for its guest than it was given; the
 * limits are for what it takes besides, and for one that was taken over.
 *
 * memory.max: the guest's memory, and VM_OVERHEAD of it and fixed:
 *   - its page tables, KVM's and the process's: 2 x 1/512;
 *   - KVM's reverse map and bitmaps: 1/512;
 *   - what a rehearsal logs, huge pages' deposited tables: less than 1/512 each;
 *   - the VMM itself, buffers of 320 streams, sockets, threads: fixed.
 *   Cached pages of its disk layers count as well, and go when room is needed.
 *   Where the disks are in memory (tmpfs) they cannot go, and are added, three
 *   times: what the layers of a disk that is forked may take up (vmm/disk/layers.h).
 * A page belongs to the group that wrote it first. So what a copy shares with
 * its original is the original's: a VM that forked and then writes all of its
 * memory anew holds twice as much. For each copy that lives, or has living
 * copies, it may have that once more, and what such a copy has below the top of its
 * disk, which may be what the original has let go: twice the disk. A template writes nothing any
 * more: there it is the copy's page tables, which fork(2) charges to the original, and its task.
 * memory.swap.max: 0. What guests hold should get onto no disk
 *   (docs/hardening.md), and a limit that ends in the swap is none.
 * cpu.max: the vCPUs, and half a processor for the VMM's own thread.
 * pids.max: the threads, and copies that are not in their own groups yet.
 * io.max: when the operator has set one.
 *
 * Thread: any. fork: no state.
 */
#pragma once

#include "daemon/group_limits.h"

#include <stdint.h>

#define VM_CPU_PERIOD_US 100000u

struct vm_size {
	uint32_t memory_mib, vcpus, disk_mib;
};

struct vm_limits_in {
	struct vm_size size;
	unsigned int controllers; /* enum cgroup2_controller */
	int disks_in_memory;
	const char *io; /* line for io.max, or "" */
};

/* Bytes for a VM without copies, and for each copy; paused: of a template. */
uint64_t vm_memory_max(const struct vm_limits_in *in);
uint64_t vm_memory_for_copy(const struct vm_limits_in *in, int paused);

/* Adds what is written when its group is made. */
void vm_limits(const struct vm_limits_in *in, struct group_limits *out);
