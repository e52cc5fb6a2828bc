/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Boot state of the first vCPU (Intel SDM vol. 3, 9.8.5 "Initializing IA-32e
 * Mode"; Linux Documentation/x86/boot.rst).
 */
#include "vmm/x86/regs.h"
#include "vmm/core/vm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>

#define GDT_GPA   0x500ull
#define PML4_GPA  0x9000ull
#define PDPT_GPA  0xa000ull
#define PD_GPA    0xb000ull
#define STACK_GPA 0x8ff0ull

#define SEL_CODE 0x10
#define SEL_DATA 0x18
#define SEL_TSS  0x20

#define PTE_PRESENT_RW 0x3ull
#define PTE_HUGE       0x80ull

#define CR0_PE    0x1ull
#define CR0_MP    0x2ull
#define CR0_ET    0x10ull
#define CR0_NE    0x20ull
#define CR0_WP    0x10000ull
#define CR0_PG    0x80000000ull
#define CR4_PAE   0x20ull
#define EFER_LME  0x100ull
#define EFER_LMA  0x400ull
#define RFLAGS_R1 0x2ull

#define FPU_CONTROL   0x37f
#define MXCSR_DEFAULT 0x1f80

static const uint64_t gdt[] = {
	0,
	0,
	0x00af9b000000ffffull, /* 0x10: 64-bit code */
	0x00cf93000000ffffull, /* 0x18: data */
	0x008f8b000000ffffull, /* 0x20: busy TSS */
};

int regs_write_tables(const struct gmem *ram, struct err *err)
{
	uint64_t pml4 = PDPT_GPA | PTE_PRESENT_RW, pdpt = PD_GPA | PTE_PRESENT_RW, pd[512];

	for (uint64_t i = 0; i < ARRAY_SIZE(pd); i++)
		pd[i] = i << 21 | PTE_HUGE | PTE_PRESENT_RW;
	if (gmem_write(ram, GDT_GPA, gdt, sizeof(gdt)) < 0 ||
	    gmem_write(ram, PML4_GPA, &pml4, sizeof(pml4)) < 0 ||
	    gmem_write(ram, PDPT_GPA, &pdpt, sizeof(pdpt)) < 0 ||
	    gmem_write(ram, PD_GPA, pd, sizeof(pd)) < 0)
		return err_text(err, EINVAL, "no guest memory for the boot page tables");
	return 0;
}

static int regs_set_sregs(int fd, struct err *err)
{
	const struct kvm_segment code = {.limit = 0xffffffff,
					 .selector = SEL_CODE,
					 .type = 11,
					 .present = 1,
					 .s = 1,
					 .l = 1,
					 .g = 1};
	const struct kvm_segment data = {.limit = 0xffffffff,
					 .selector = SEL_DATA,
					 .type = 3,
					 .present = 1,
					 .s = 1,
					 .db = 1,
					 .g = 1};
	const struct kvm_segment tss = {
		.limit = 0xffff, .selector = SEL_TSS, .type = 11, .present = 1};
	struct kvm_sregs s = {0};
	int rc = kvm_ioctl(fd, KVM_GET_SREGS, &s);

	if (rc < 0)
		return err_set(err, -rc, "KVM_GET_SREGS");
	s.gdt.base = GDT_GPA;
	s.gdt.limit = sizeof(gdt) - 1;
	s.idt.base = 0;
	s.idt.limit = 0;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = tss;
	s.cr3 = PML4_GPA;
	s.cr4 = CR4_PAE;
	s.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	s.efer = EFER_LME | EFER_LMA;
	rc = kvm_ioctl(fd, KVM_SET_SREGS, &s);
	return rc < 0 ? err_set(err, -rc, "KVM_SET_SREGS") : 0;
}

int regs_init_boot(int vcpu_fd, uint64_t entry, uint64_t rsi, struct err *err)
{
	struct kvm_regs r = {
		.rip = entry, .rsi = rsi, .rsp = STACK_GPA, .rbp = STACK_GPA, .rflags = RFLAGS_R1};
	struct kvm_fpu fpu = {.fcw = FPU_CONTROL, .mxcsr = MXCSR_DEFAULT};
	int rc = regs_set_sregs(vcpu_fd, err);

	if (rc < 0)
		return rc;
	rc = kvm_ioctl(vcpu_fd, KVM_SET_FPU, &fpu);
	if (rc < 0)
		return err_set(err, -rc, "KVM_SET_FPU");
	rc = kvm_ioctl(vcpu_fd, KVM_SET_REGS, &r);
	return rc < 0 ? err_set(err, -rc, "KVM_SET_REGS") : 0;
}
