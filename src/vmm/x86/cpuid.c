/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPUID policy as a table of masks, and topology leaves per vCPU.
 */
#include "vmm/x86/cpuid.h"
#include "vmm/core/vm.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ANY_INDEX    0xffffffffu
#define AMD_SVM      (1u << 2)
#define AMD_COUNTERS (1u << 10 | 1u << 23 | 1u << 24 | 1u << 28)

/*
 * What KVM offers beyond a processor (linux/kvm_para.h), as far as guests are better with it:
 * - no delay after accesses to ports (1), each of which would be an exit;
 * - kvm-clock by its newer numbers (3), and that it is the same on all processors (24);
 * - steal time (5), without which a kernel takes the time of others for its own, and, by it, no
 *   waiting for the TLB of a processor that does not run (9): there are more of them than the host
 *   has. It tells a guest what its own clock does, too: how long it did not run;
 * - ends of interrupts without an exit (6), where the processor has no APIC for guests.
 *
 * All else is off, and KVM refuses it (cpuid_set()): asynchronous page faults (4, 10, 14), whose
 * waiters a fork would leave asleep; kicks of halted processors (7), interrupts (11) and yields
 * (13) by hypercall, since with few processors the APIC does as well; the older numbers of
 * kvm-clock (0), which are aliases; polling before halts (12), the memory of encrypted guests and
 * their moves (16, 17), more processors than there may be (15), and the first MMU of KVM (2), for
 * which no guest asks.
 */
#define KVM_FEATURES_KEPT (1u << 1 | 1u << 3 | 1u << 5 | 1u << 6 | 1u << 9 | 1u << 24)

/* Bits cleared and set in a leaf, same for every vCPU. */
static const struct {
	uint32_t function, index;
	uint32_t clear[4], set[4]; /* eax, ebx, ecx, edx */
} policy[] = {
	/* VMX (5) and PDCM (15) off; TSC deadline (24) and hypervisor (31) on: the guest has no
	   PIT. */
	{0x1, ANY_INDEX, {0, 0, 1u << 5 | 1u << 15, 0}, {0, 0, 1u << 24 | 1u << 31, 0}},
	/* WAITPKG (ecx 5): would let a guest stall the processor. Processor trace (ebx 25) and
	   records of branches (edx 19) off. */
	{0x7, 0, {0, 1u << 25, 1u << 5, 1u << 19}, {0}},
	/* No performance counters, trace and records of Intel's. */
	{0xa, ANY_INDEX, {~0u, ~0u, ~0u, ~0u}, {0}},
	{0x14, ANY_INDEX, {~0u, ~0u, ~0u, ~0u}, {0}},
	{0x1c, ANY_INDEX, {~0u, ~0u, ~0u, ~0u}, {0}},
	{0x23, ANY_INDEX, {~0u, ~0u, ~0u, ~0u}, {0}},
	{0x40000001, ANY_INDEX, {~KVM_FEATURES_KEPT, ~0u, ~0u, ~0u}, {0}},
	/* SVM (ecx 2) off, and its leaf empty. So are the counters and samples of AMD: of a core
	   (23), the north bridge (24), the last cache (28), of instructions (10). Those of the K7
	   are behind no bit: vm.c. */
	{0x80000001, ANY_INDEX, {0, 0, AMD_SVM | AMD_COUNTERS, 0}, {0}},
	{0x8000000a, ANY_INDEX, {~0u, ~0u, ~0u, ~0u}, {0}},
	{0x8000001b, ANY_INDEX, {~0u, ~0u, ~0u, ~0u}, {0}},
	{0x80000022, ANY_INDEX, {~0u, ~0u, ~0u, ~0u}, {0}},
};

static void cpuid_apply_policy(struct kvm_cpuid_entry2 *e)
{
	uint32_t *reg[4] = {&e->eax, &e->ebx, &e->ecx, &e->edx};

	for (size_t i = 0; i < ARRAY_SIZE(policy); i++) {
		if (policy[i].function != e->function ||
		    (policy[i].index != ANY_INDEX && policy[i].index != e->index))
			continue;
		for (int r = 0; r < 4; r++)
			*reg[r] = (*reg[r] & ~policy[i].clear[r]) | policy[i].set[r];
	}
}

bool cpuid_is_tcg(void)
{
	static const uint32_t hypervisor = 0x40000000, is_there = 1u << 31;
	uint32_t eax, ebx, ecx, edx, name[3];

	if (!__get_cpuid(0x1, &eax, &ebx, &ecx, &edx) || !(ecx & is_there))
		return false;
	__cpuid(hypervisor, eax, name[0], name[1], name[2]);
	return memcmp(name, "TCGTCGTCGTCG", sizeof(name)) == 0;
}

/* Needs nothing of the host's kernel, not even to be known there. */
static void cpuid_show_cx16(struct kvm_cpuid_entry2 *e)
{
	uint32_t eax, ebx, ecx, edx;

	if (e->function == 0x1 && __get_cpuid(0x1, &eax, &ebx, &ecx, &edx))
		e->ecx |= ecx & bit_CMPXCHG16B;
}

/* struct kvm_cpuid2 with room for the largest table. */
struct cpuid_wire {
	struct kvm_cpuid2 h;
	struct kvm_cpuid_entry2 entries[CPUID_MAX_ENTRIES];
};

int cpuid_init(struct cpuid_table *t, int kvm_fd, struct err *err)
{
	_cleanup_free struct cpuid_wire *w = calloc(1, sizeof(*w));
	int rc;

	if (!w)
		return err_set(err, ENOMEM, "CPUID table");
	w->h.nent = CPUID_MAX_ENTRIES;
	rc = kvm_ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, w);
	if (rc < 0)
		return err_set(err, -rc, "KVM_GET_SUPPORTED_CPUID");
	t->count = w->h.nent;
	memcpy(t->entries, w->entries, t->count * sizeof(t->entries[0]));
	for (uint32_t i = 0; i < t->count; i++) {
		cpuid_apply_policy(&t->entries[i]);
		cpuid_show_cx16(&t->entries[i]);
	}
	return 0;
}

static void cpuid_set_topology(struct kvm_cpuid_entry2 *e, unsigned int id, unsigned int ncpus)
{
	switch (e->function) {
	case 0x1:
		/* ebx: APIC id in 31:24, logical processors in 23:16; edx 28: more than one. */
		e->ebx = (e->ebx & 0xffff) | (ncpus & 0xff) << 16 | id << 24;
		e->edx = ncpus > 1 ? e->edx | 1u << 28 : e->edx & ~(1u << 28);
		break;
	case 0xb:
	case 0x1f:
		e->edx = id;
		break;
	default:
		break;
	}
}

int cpuid_set(const struct cpuid_table *t, int vcpu_fd, unsigned int id, unsigned int ncpus,
	      struct err *err)
{
	const struct kvm_enable_cap enforce = {.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
					       .args = {1}};
	_cleanup_free struct cpuid_wire *w = calloc(1, sizeof(*w));
	int rc;

	if (!w)
		return err_set(err, ENOMEM, "CPUID table");
	/* Else KVM answers hypercalls and MSRs of its features whether they are shown or not. */
	rc = kvm_ioctl(vcpu_fd, KVM_ENABLE_CAP, &enforce);
	if (rc < 0)
		return err_set(err, -rc, "cannot take KVM's features from vCPU %u", id);
	w->h.nent = t->count;
	memcpy(w->entries, t->entries, t->count * sizeof(t->entries[0]));
	for (uint32_t i = 0; i < t->count; i++)
		cpuid_set_topology(&w->entries[i], id, ncpus);
	rc = kvm_ioctl(vcpu_fd, KVM_SET_CPUID2, w);
	return rc < 0 ? err_set(err, -rc, "KVM_SET_CPUID2 of vCPU %u", id) : 0;
}
