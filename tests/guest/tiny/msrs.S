# SPDX-License-Identifier: Apache-2.0
# Reads each model-specific register that there could be. Those that can be read must be of the list
# below, and of that some must be there; the status is the number of one that is not, with bit 29.
# Then tries to write some of which nothing may come. Expect: status 0x1
.include "guest.inc"
_start:
	jmp	start
.include "trap.inc"

.data
# First and last of what is tried.
stretches:
	.long	0, 0x1fff
	.long	0x40000000, 0x400001ff
	.long	0x4b564d00, 0x4b564dff
	.long	0xc0000000, 0xc0001fff
	.long	0xc0010000, 0xc0011fff
stretches_end:

# First and last of what a guest may read, if its processor and its KVM have it (src/vmm/x86/msr_filter.c).
readable:
	.long	0x10, 0x10		# TSC
	.long	0x1b, 0x1b		# APIC base
	.long	0x3b, 0x3b		# TSC_ADJUST
	.long	0x48, 0x49		# SPEC_CTRL, PRED_CMD
	.long	0x8b, 0x8b		# revision of the microcode
	.long	0xce, 0xce		# PLATFORM_INFO
	.long	0xfe, 0xfe		# MTRRcap
	.long	0x10a, 0x10a		# ARCH_CAPABILITIES
	.long	0x122, 0x122		# TSX_CTRL
	.long	0x140, 0x140		# MISC_FEATURES_ENABLES
	.long	0x174, 0x176		# SYSENTER
	.long	0x179, 0x17b		# machine checks
	.long	0x1a0, 0x1a0		# MISC_ENABLE
	.long	0x1d9, 0x1d9		# DEBUGCTL
	.long	0x200, 0x21f		# MTRRs
	.long	0x250, 0x250
	.long	0x258, 0x259
	.long	0x268, 0x26f
	.long	0x277, 0x277		# PAT
	.long	0x2ff, 0x2ff
	.long	0x400, 0x47f		# machine checks
	.long	0x6e0, 0x6e0		# TSC_DEADLINE
	.long	0xda0, 0xda0		# XSS
	.long	0x4b564d00, 0x4b564d01	# kvm-clock
	.long	0x4b564d03, 0x4b564d04	# steal time, ends of interrupts
	.long	0xc0000080, 0xc0000084	# EFER, SYSCALL
	.long	0xc0000100, 0xc0000103	# FS, GS, TSC_AUX
	.long	0xc0010010, 0xc0010010	# SYSCFG
	.long	0xc0010015, 0xc0010015	# HWCR
	.long	0xc001001f, 0xc001001f	# NB_CFG
	.long	0xc0010055, 0xc0010055	# C1E
	.long	0xc001011f, 0xc001011f	# VIRT_SPEC_CTRL
	.long	0xc0010140, 0xc0010141	# OSVW
	.long	0xc0011029, 0xc0011029	# DE_CFG
readable_end:

# What every processor and KVM has.
there:	.long	0x10, 0x1b, 0x174, 0x179, 0x1a0, 0x277, 0x400, 0x6e0
	.long	0x4b564d01, 0x4b564d03, 0x4b564d04, 0xc0000080, 0xc0000082, 0xc0000102
there_end:

# What KVM would take a 0 for, or might.
unwritable:
	.long	0x11, 0x12		# kvm-clock under its first numbers
	.long	0x79, 0xc0010020	# updates of microcode
	.long	0x186, 0x38f, 0xc0010000, 0xc0010200	# counters
	.long	0x40000000, 0x40000001	# Hyper-V's
	.long	0x4b564d02, 0x4b564d05, 0x4b564d06, 0x4b564d07, 0x4b564d08
	.long	0xc0010010, 0xc0010114, 0xc0010117	# SYSCFG, SVM
unwritable_end:
.text

# Reports the number in %ecx, as the last thing, with these bits.
.macro tell bits
	or	$\bits, %ecx
	report_reg %ecx
	stop
.endm

start:	traps
	lea	stretches(%rip), %rbx
stretch:
	mov	(%rbx), %r12d
one:	mov	%r12d, %ecx
	try	rdmsr
	test	%r14d, %r14d
	jnz	next
	mov	%r12d, %ecx
	lea	readable(%rip), %rsi
	lea	readable_end(%rip), %rdi
1:	cmp	(%rsi), %ecx
	jb	2f
	cmp	4(%rsi), %ecx
	jbe	next
2:	add	$8, %rsi
	cmp	%rdi, %rsi
	jne	1b
	tell	1 << 29
next:	inc	%r12d
	mov	%r12d, %ecx
	dec	%ecx
	cmp	4(%rbx), %ecx
	jne	one
	add	$8, %rbx
	lea	stretches_end(%rip), %rax
	cmp	%rax, %rbx
	jne	stretch

	lea	there(%rip), %rbx
3:	mov	(%rbx), %ecx
	try	rdmsr
	test	%r14d, %r14d
	jz	4f
	tell	1 << 28
4:	add	$4, %rbx
	lea	there_end(%rip), %rax
	cmp	%rax, %rbx
	jne	3b

	lea	unwritable(%rip), %rbx
5:	mov	(%rbx), %ecx
	xor	%eax, %eax
	xor	%edx, %edx
	try	wrmsr
	test	%r14d, %r14d
	jnz	6f
	tell	1 << 27
6:	add	$4, %rbx
	lea	unwritable_end(%rip), %rax
	cmp	%rax, %rbx
	jne	5b
	report	1
	stop
