# SPDX-License-Identifier: Apache-2.0
# Entered like a Linux kernel: long mode, the first GiB mapped one to one, RSI = zero page. Maps
# 512 GiB one to one, which is all that there could be, and calls hostile.c. A second processor, which
# is started later, gets there by itself.
.set PML4, 0x9000
.set PDPT, 0xa000
.set TRAMPOLINE, 0x3000		# of hostile.c
.set MSR_EFER, 0xc0000080
.set MSR_GS_BASE, 0xc0000101

# GS leads to what the processor has alone.
.macro own what
	lea	\what(%rip), %rax
	mov	%rax, %rdx
	shr	$32, %rdx
	mov	$MSR_GS_BASE, %ecx
	wrmsr
.endm

.globl _start
.text
_start:
	mov	$0x83, %eax		# present, writable, 1 GiB page
	mov	$PDPT, %edi
	mov	$512, %ecx
1:	mov	%rax, (%rdi)
	add	$8, %rdi
	movabs	$(1 << 30), %rdx
	add	%rdx, %rax
	loop	1b
	mov	%cr3, %rax
	mov	%rax, %cr3
	own	first
	lea	stack_end(%rip), %rsp
	mov	%rsi, %rdi
	call	hostile
1:	cli
	hlt
	jmp	1b

second_start:
	own	second
	lea	second_stack_end(%rip), %rsp
	call	hostile_second
1:	cli
	hlt
	jmp	1b

# What a processor begins with, copied to where it looks for it: from real mode straight to long mode,
# with the page tables of the first one.
.globl trampoline, trampoline_end
.code16
trampoline:
	cli
	mov	%cs, %ax
	mov	%ax, %ds
	lgdtl	gdt_pointer - trampoline
	mov	%cr4, %eax
	or	$0x20, %eax		# PAE
	mov	%eax, %cr4
	mov	$PML4, %eax
	mov	%eax, %cr3
	mov	$MSR_EFER, %ecx
	rdmsr
	or	$0x100, %eax		# LME
	wrmsr
	mov	%cr0, %eax
	and	$0x9fffffff, %eax	# caches on
	or	$0x80000001, %eax	# PG, PE
	mov	%eax, %cr0
	ljmpl	$8, $(TRAMPOLINE + 2f - trampoline)
.code64
2:	mov	$16, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	movabs	$second_start, %rax
	jmp	*%rax
.align 8
gdt:	.quad	0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.long	TRAMPOLINE + gdt - trampoline
trampoline_end:

.bss
.align 16
first:	.skip	16
second:	.skip	16
	.skip	16384
stack_end:
	.skip	16384
second_stack_end:
.section .note.GNU-stack, "", @progbits
