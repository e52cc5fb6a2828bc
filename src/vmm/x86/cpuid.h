/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest's CPUID shows: of what KVM supports the leaves and bits of a
 * list with reasons (cpuid.c): what programs compute with, and what a kernel
 * needs; no virtualization, no performance counters and the like, which tell of
 * neighbours, nothing that a fork does not carry over, and nothing that is not
 * known. Beside it topology per vCPU, and CMPXCHG16B where the processor has it:
 * KVM shows what the host's kernel uses, and that of the emulated host does without.
 *
 * Thread: loop thread. fork: the table is inherited and set again in the child.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#define CPUID_MAX_ENTRIES 256

struct cpuid_table {
	uint32_t count;
	struct kvm_cpuid_entry2 entries[CPUID_MAX_ENTRIES];
};

/* Whether the processor that this runs on is QEMU's emulation (TCG). */
bool cpuid_is_tcg(void);

/* Asks KVM and applies the policy that is the same for all vCPUs. */
__must_check int cpuid_init(struct cpuid_table *t, int kvm_fd, struct err *err);

/*
 * Sets the table on one vCPU with its id and the number of all. What it does not show of KVM's own
 * features, KVM refuses from then on, also to who saves the vCPU's MSRs.
 */
__must_check int cpuid_set(const struct cpuid_table *t, int vcpu_fd, unsigned int id,
			   unsigned int ncpus, struct err *err);
