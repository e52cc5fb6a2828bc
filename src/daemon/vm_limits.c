/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic and text of vm_limits.h. Stateless.
 */
#include "daemon/vm_limits.h"
#include "daemon/limits.h"
#include "lib/cgroup2.h"

#define MIB           (1ull << 20)
#define OVERHEAD_MIB  128u /* fixed */
#define OVERHEAD_PART 64u  /* and this part of the guest's memory */
#define PAGE_TABLES   512u /* this part of what they map */
#define COPY_TASK     MIB  /* a process that fork(2) makes: its stack, its maps */
#define SPARE_PIDS    16u
/* Times the disk's size: its layers, and those of them that a copy may have (vmm/disk/layers.h). */
#define DISK_LAYERS  3ull
#define LAYERS_BELOW 2ull

uint64_t vm_memory_max(const struct vm_limits_in *in)
{
	uint64_t guest = in->size.memory_mib * MIB;
	uint64_t disk = in->disks_in_memory ? DISK_LAYERS * in->size.disk_mib * MIB : 0;

	return guest + guest / OVERHEAD_PART + OVERHEAD_MIB * MIB + disk;
}

uint64_t vm_memory_for_copy(const struct vm_limits_in *in, int paused)
{
	uint64_t guest = in->size.memory_mib * MIB;
	uint64_t fork = guest / PAGE_TABLES + COPY_TASK;

	if (paused)
		return fork;
	return fork + guest + (in->disks_in_memory ? LAYERS_BELOW * in->size.disk_mib * MIB : 0);
}

void vm_limits(const struct vm_limits_in *in, struct group_limits *out)
{
	uint32_t quota = in->size.vcpus * VM_CPU_PERIOD_US + VM_CPU_PERIOD_US / 2;
	uint32_t pids = 1 + in->size.vcpus + LIMIT_FORKS_IN_FLIGHT + SPARE_PIDS;

	if (in->controllers & CGROUP2_MEMORY) {
		group_limits_add(out, "memory.max", "%llu", (unsigned long long)vm_memory_max(in));
		group_limits_add(out, "memory.swap.max", "0");
	}
	if (in->controllers & CGROUP2_CPU)
		group_limits_add(out, "cpu.max", "%u %u", quota, VM_CPU_PERIOD_US);
	if (in->controllers & CGROUP2_PIDS)
		group_limits_add(out, "pids.max", "%u", pids);
	if ((in->controllers & CGROUP2_IO) && in->io[0])
		group_limits_add(out, "io.max", "%s", in->io);
}
