/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list, and its form for KVM: bitmaps over the few stretches of numbers in
 * which processors and KVM have registers. What is outside of them is refused.
 *
 * A kernel takes #GP for "not there" where it does not know by CPUID, so a
 * register that is missing here costs a guest a warning at worst. Those that
 * Linux uses without asking are all here, whichever processor it finds.
 */
#include "vmm/x86/msr_filter.h"
#include "vmm/core/vm.h"

#include <errno.h>
#include <string.h>

#define READ  KVM_MSR_FILTER_READ
#define WRITE KVM_MSR_FILTER_WRITE
#define BOTH  (READ | WRITE)

/*
 * Not here, beside what no guest was ever shown: performance counters and what samples by them,
 * with their buffers (0xc1, 0x186, 0x309, 0x345, 0x38d, 0x3f1, 0x600, 0xc0000300, 0xc0010000,
 * 0xc0010200, 0xc0011030), traces (0x560), records of branches (0x1c8, 0x1c9, 0x1db to 0x1de,
 * 0x680, 0x1500), what VMX and SVM can and do (0x3a, 0x480, 0xc0000104, 0xc0010114, 0xc0010117),
 * updates of microcode (0x79, 0xc0010020), power, frequency and heat (0xe7, 0x198 to 0x19c, 0x1a2,
 * 0x1b0, 0x606, 0x770, 0xc0010061), numbers of a processor's own (0x17, 0x4e), system management
 * (0x34, 0x9e), enclaves (0x8c), Hyper-V's (0x40000000), what KVM does not show (0x11, 0x12,
 * 0x4b564d02, ...).
 */
static const struct {
	uint32_t first, last;
	uint32_t how;
} allowed[] = {
	{0x10, 0x10, BOTH},   /* TSC */
	{0x1b, 0x1b, BOTH},   /* where the local APIC is, and of which kind */
	{0x3b, 0x3b, BOTH},   /* TSC_ADJUST */
	{0x48, 0x49, BOTH},   /* SPEC_CTRL, PRED_CMD: against speculation */
	{0x8b, 0x8b, BOTH},   /* revision of the microcode: Linux writes 0 before it reads */
	{0xce, 0xce, READ},   /* PLATFORM_INFO: whether CPUID can be made to fault, */
	{0x140, 0x140, BOTH}, /* MISC_FEATURES_ENABLES: and that it is to; both are KVM's */
	{0xfe, 0xfe, READ},   /* MTRRcap */
	{0x10a, 0x10a,
	 READ}, /* ARCH_CAPABILITIES: which attacks there need be no defence against */
	{0x10b, 0x10b, WRITE}, /* FLUSH_CMD */
	{0x122, 0x122, BOTH},  /* TSX_CTRL: transactions off */
	{0x174, 0x176, BOTH},  /* SYSENTER */
	{0x179, 0x17b, BOTH},  /* machine checks, which KVM keeps in a table: general, */
	{0x400, 0x47f, BOTH},  /* and of 32 banks */
	{0x1a0, 0x1a0, BOTH},  /* MISC_ENABLE */
	{0x1d9, 0x1d9, BOTH},  /* DEBUGCTL: single steps over branches */
	{0x200, 0x21f, BOTH},  /* MTRRs: variable, */
	{0x250, 0x250, BOTH},  /* fixed, */
	{0x258, 0x259, BOTH},
	{0x268, 0x26f, BOTH},
	{0x277, 0x277, BOTH}, /* PAT, */
	{0x2ff, 0x2ff, BOTH}, /* and the type of the rest */
	{0x6e0, 0x6e0, BOTH}, /* TSC_DEADLINE */
	{0xda0, 0xda0, BOTH}, /* XSS */

	{0x4b564d00, 0x4b564d01, BOTH}, /* kvm-clock, */
	{0x4b564d03, 0x4b564d04, BOTH}, /* steal time, ends of interrupts: as cpuid.c shows */

	{0xc0000080, 0xc0000084, BOTH}, /* EFER, SYSCALL */
	{0xc0000100, 0xc0000103, BOTH}, /* bases of FS and GS, TSC_AUX */

	/* AMD's. */
	{0xc0010010, 0xc0010010, READ}, /* SYSCFG: Linux reads it for its MTRRs */
	{0xc0010015, 0xc0010015, BOTH}, /* HWCR: whether the TSC is of one frequency */
	{0xc001001f, 0xc001001f, BOTH}, /* NB_CFG: Linux writes it where there is PCI */
	{0xc0010055, 0xc0010055, READ}, /* whether an idle processor stops its APIC: old ones */
	{0xc001011f, 0xc001011f, BOTH}, /* VIRT_SPEC_CTRL */
	{0xc0010140, 0xc0010141, READ}, /* which errata the processor has */
	{0xc0011029, 0xc0011029, BOTH}, /* DE_CFG: LFENCE holds up what follows */
};

/* The stretches: the first number of each, and how many; whole words of a bitmap. */
#define STRETCHES 4
static const struct {
	uint32_t base, count;
} stretches[STRETCHES] = {
	{0, 0x1000},
	{0x4b564d00, 0x40},
	{0xc0000000, 0x400},
	{0xc0010000, 0x2000},
};
#define LARGEST 0x2000u

/* One stretch for one kind of access. */
static void fill(uint8_t bits[LARGEST / 8], uint32_t base, uint32_t count, uint32_t how)
{
	for (size_t i = 0; i < ARRAY_SIZE(allowed); i++)
		for (uint32_t n = allowed[i].first; n <= allowed[i].last; n++)
			if ((allowed[i].how & how) && n >= base && n - base < count)
				bits[(n - base) / 8] |= (uint8_t)(1u << (n - base) % 8);
}

int msr_filter_set(int vm_fd, struct err *err)
{
	struct kvm_msr_filter f = {.flags = KVM_MSR_FILTER_DEFAULT_DENY};
	uint8_t bits[2 * STRETCHES][LARGEST / 8] = {{0}};
	int rc;

	for (uint32_t i = 0; i < 2 * STRETCHES; i++) {
		f.ranges[i] = (struct kvm_msr_filter_range){
			.flags = i % 2 ? WRITE : READ,
			.base = stretches[i / 2].base,
			.nmsrs = stretches[i / 2].count,
			.bitmap = bits[i],
		};
		fill(bits[i], f.ranges[i].base, f.ranges[i].nmsrs, f.ranges[i].flags);
	}
	rc = kvm_ioctl(vm_fd, KVM_X86_SET_MSR_FILTER, &f);
	return rc < 0 ? err_set(err, -rc, "cannot set the filter of model-specific registers") : 0;
}
