/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPUID policy as a table of what is shown, and topology leaves per vCPU.
 */
#include "vmm/x86/cpuid.h"
#include "vmm/core/vm.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ALL        (~0u)
#define BIT(n)     (1u << (n))
#define BITS(a, b) (~0u >> (31 - (b)) & ~0u << (a))

/*
 * Leaf 1. Not: virtualization, performance counters and their buffers, power and heat, a serial
 * number, MONITOR.
 */
#define L1_ECX                                                                                  \
	(BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) /* SSE3 PCLMULQDQ SSSE3 FMA CMPXCHG16B */ \
	 | BIT(17) | BIT(21)                          /* PCID, x2APIC */                        \
	 | BIT(19) | BIT(20) | BIT(22) | BIT(23)      /* SSE4.1 SSE4.2 MOVBE POPCNT */          \
	 | BIT(25) | BITS(26, 29) | BIT(30))          /* AES, XSAVE AVX F16C, RDRAND */
/* The guest has no PIT: TSC deadline; and that there is a hypervisor. */
#define L1_ECX_SET (BIT(24) | BIT(31))
#define L1_EDX                                                          \
	(BITS(0, 9) | BITS(11, 17) /* FPU to CX8, APIC; SEP to PSE36 */ \
	 | BIT(19) | BITS(23, 28)) /* CLFLUSH; MMX FXSR SSE SSE2, self-snoop, more threads */

/*
 * Leaf 7. Not: traces; transactions, which tell when another processor comes near a line of the
 * cache (KVM switches them off in the processor, when they are not shown); shadow stacks and branch
 * targets, since a fork does not carry the pointer to a shadow stack; matrices (AMX), whose state
 * is larger than what a fork carries; bounds (MPX), which Intel has given up; enclaves, key locker,
 * user interrupts, a kernel's protection keys, shares of caches; WAITPKG, by which a guest would
 * stall the processor.
 */
#define L7_EBX                                                                               \
	(BIT(0) | BIT(1) | BIT(3) | BIT(5) | BIT(8) /* FSGSBASE TSC_ADJUST BMI1 AVX2 BMI2 */ \
	 | BIT(6) | BIT(13)                         /* of the FPU: what it does not save */  \
	 | BIT(7) | BIT(10) | BIT(20)               /* SMEP INVPCID SMAP */                  \
	 | BIT(9) | BIT(18) | BIT(19) | BIT(29)     /* ERMS RDSEED ADX SHA */                \
	 | BIT(23) | BIT(24)                        /* CLFLUSHOPT CLWB */                    \
	 | BIT(16) | BIT(17) | BIT(21) | BITS(26, 28) | BIT(30) | BIT(31)) /* AVX-512 */
#define L7_ECX                                                                               \
	(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14) /* AVX-512 */                         \
	 | BIT(2) | BIT(3) | BIT(4) | BIT(16)          /* UMIP, protection keys, 5 levels */ \
	 | BIT(8) | BIT(9) | BIT(10) | BIT(22)         /* GFNI VAES VPCLMULQDQ RDPID */      \
	 | BIT(24)                                     /* bus locks can be detected */       \
	 | BIT(25) | BIT(27) | BIT(28))                /* CLDEMOTE MOVDIRI MOVDIR64B */
#define L7_EDX                                                    \
	(BIT(2) | BIT(3) | BIT(8) | BIT(23)  /* AVX-512 */        \
	 | BIT(4) | BIT(14)                  /* FSRM SERIALIZE */ \
	 | BIT(10) | BITS(26, 29) | BIT(31)) /* against speculation, and what is in vain */
/* SHA512 SM3 SM4, AVX_VNNI AVX512_BF16 CMPCCXADD, quick REP, AVX_IFMA, LAM. */
#define L7_1_EAX (BITS(0, 2) | BIT(4) | BIT(5) | BIT(7) | BITS(10, 12) | BIT(23) | BIT(26))
/* AVX of bytes and of words, prefetches of code, AVX10. */
#define L7_1_EDX (BIT(4) | BIT(5) | BIT(10) | BIT(14) | BIT(19))
/* Against speculation. */
#define L7_2_EDX BITS(0, 5)

/* Leaf 13: x87, SSE, AVX, AVX-512, protection keys; XSAVEOPT, XSAVEC, XGETBV of 1, XSAVES. */
#define XSTATES  (BITS(0, 2) | BITS(5, 7) | BIT(9))
#define LD_1_EAX BITS(0, 3)

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
#define KVM_FEATURES (BIT(1) | BIT(3) | BIT(5) | BIT(6) | BIT(9) | BIT(24))

/*
 * AMD's, and Intel's above 0x80000000. Not: SVM, counters and samples of a core (10, 23), of the
 * north bridge (24), of the last cache (28), other APIC registers, watchdogs, MWAITX.
 */
#define X1_ECX                                                                            \
	(BIT(0) | BIT(1) | BIT(4) | BIT(5) /* LAHF, more cores, CR8 for 32 bits, LZCNT */ \
	 | BITS(6, 9)                      /* SSE4A, misaligned SSE, PREFETCHW, errata */ \
	 | BIT(11) | BIT(16) | BIT(21)     /* XOP FMA4 TBM */                             \
	 | BIT(22))                        /* 0x8000001d, 0x8000001e */
#define X1_EDX                                                                     \
	(BITS(0, 9) | BITS(11, 17) /* as in leaf 1; SYSCALL */                     \
	 | BIT(20) | BITS(22, 27)  /* NX, MMX of AMD, FXSR, 1 GiB pages, RDTSCP */ \
	 | BITS(29, 31))           /* long mode, 3DNow! */
/* CLZERO, XSAVE of the error pointer, WBNOINVD; against speculation. Not RDPRU, IRPERF: counters */
#define X8_EBX (BIT(0) | BIT(2) | BIT(9) | BIT(12) | BITS(14, 19) | BITS(24, 26) | BITS(28, 30))
/* Nested breakpoints, MSRs of bases, LFENCE, VERW, null selectors, automatic IBRS, SMM_CTL, quick
 * REP, prefetch; against speculation. */
#define X21_EAX (BITS(0, 2) | BIT(5) | BIT(6) | BITS(8, 11) | BIT(17) | BIT(20) | BITS(27, 30))
#define X21_ECX (BIT(1) | BIT(2))

/*
 * All that a guest is shown of what KVM offers; what is not here, leaves and bits, nobody sees. So
 * what processors and kernels yet to come bring is off until somebody has looked at it. Bits of
 * which a processor computes something are on: what programs look for by CPUID they find.
 */
static const struct {
	uint32_t function;
	uint32_t first, last;     /* of its indices; 0 to ALL: it has none, or any */
	uint32_t show[4], set[4]; /* eax, ebx, ecx, edx */
} leaves[] = {
	{0x0, 0, ALL, {ALL, ALL, ALL, ALL}, {0}}, /* the last leaf, and the maker */
	{0x1, 0, ALL, {ALL, ALL, L1_ECX, L1_EDX}, {0, 0, L1_ECX_SET, 0}},
	{0x2, 0, ALL, {ALL, ALL, ALL, ALL}, {0}}, /* caches */
	{0x4, 0, ALL, {ALL, ALL, ALL, ALL}, {0}},
	{0x6, 0, ALL, {BIT(2), 0, 0, 0}, {0}}, /* the APIC's timer never stops */
	{0x7, 0, 0, {ALL, L7_EBX, L7_ECX, L7_EDX}, {0}},
	{0x7, 1, 1, {L7_1_EAX, 0, 0, L7_1_EDX}, {0}},
	{0x7, 2, 2, {0, 0, 0, L7_2_EDX}, {0}},
	{0xb, 0, ALL, {ALL, ALL, ALL, ALL}, {0}}, /* topology */
	{0xd, 0, 0, {XSTATES, ALL, ALL, 0}, {0}},
	{0xd, 1, 1, {LD_1_EAX, ALL, 0, 0}, {0}},
	{0xd, 2, 2, {ALL, ALL, ALL, ALL}, {0}}, /* where each of them is */
	{0xd, 5, 7, {ALL, ALL, ALL, ALL}, {0}},
	{0xd, 9, 9, {ALL, ALL, ALL, ALL}, {0}},
	{0x15, 0, ALL, {ALL, ALL, ALL, 0}, {0}},   /* frequency of the TSC */
	{0x1f, 0, ALL, {ALL, ALL, ALL, ALL}, {0}}, /* topology */
	{0x24, 0, 0, {ALL, ALL, 0, 0}, {0}},       /* AVX10 */

	{0x40000000, 0, ALL, {ALL, ALL, ALL, ALL}, {0}}, /* the last leaf, and that it is KVM */
	{0x40000001, 0, ALL, {KVM_FEATURES, 0, 0, 0}, {0}},

	{0x80000000, 0, ALL, {ALL, ALL, ALL, ALL}, {0}}, /* the last leaf, and the maker */
	{0x80000001, 0, ALL, {ALL, ALL, X1_ECX, X1_EDX}, {0}},
	{0x80000002, 0, ALL, {ALL, ALL, ALL, ALL}, {0}}, /* what it is called */
	{0x80000003, 0, ALL, {ALL, ALL, ALL, ALL}, {0}},
	{0x80000004, 0, ALL, {ALL, ALL, ALL, ALL}, {0}},
	{0x80000005, 0, ALL, {ALL, ALL, ALL, ALL}, {0}}, /* caches */
	{0x80000006, 0, ALL, {ALL, ALL, ALL, ALL}, {0}},
	{0x80000007, 0, ALL, {0, 0, 0, BIT(8)}, {0}}, /* the TSC is of one frequency */
	{0x80000008, 0, ALL, {ALL, X8_EBX, ALL, 0}, {0}},
	{0x80000019, 0, ALL, {ALL, ALL, 0, 0}, {0}},      /* TLBs */
	{0x8000001a, 0, ALL, {BITS(0, 2), 0, 0, 0}, {0}}, /* how wide SSE and AVX really are */
	{0x8000001d, 0, ALL, {ALL, ALL, ALL, ALL}, {0}},  /* caches */
	{0x8000001e, 0, ALL, {ALL, ALL, ALL, 0}, {0}},    /* topology */
	{0x80000021, 0, ALL, {X21_EAX, 0, X21_ECX, 0}, {0}},
};

/* Leaves of an entry what is shown; false when that is nothing. */
static bool cpuid_show(struct kvm_cpuid_entry2 *e)
{
	uint32_t *reg[4] = {&e->eax, &e->ebx, &e->ecx, &e->edx};

	for (size_t i = 0; i < ARRAY_SIZE(leaves); i++) {
		if (leaves[i].function != e->function || e->index < leaves[i].first ||
		    e->index > leaves[i].last)
			continue;
		for (int r = 0; r < 4; r++)
			*reg[r] = (*reg[r] & leaves[i].show[r]) | leaves[i].set[r];
		return true;
	}
	return false;
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
	t->count = 0;
	for (uint32_t i = 0; i < w->h.nent; i++) {
		if (!cpuid_show(&w->entries[i]))
			continue;
		cpuid_show_cx16(&w->entries[i]);
		t->entries[t->count++] = w->entries[i];
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
