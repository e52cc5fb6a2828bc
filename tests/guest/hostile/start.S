# SPDX-License-Identifier: Apache-2.0
# Entered like a Linux kernel: long mode, the first GiB mapped one to one, RSI = zero page. Maps
# 512 GiB one to one, which is all that there could be, and calls hostile.c.
.set PDPT, 0xa000
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
	lea	stack_end(%rip), %rsp
	mov	%rsi, %rdi
	call	hostile
1:	cli
	hlt
	jmp	1b

.bss
.align 16
	.skip	16384
stack_end:
.section .note.GNU-stack, "", @progbits
