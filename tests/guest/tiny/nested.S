# SPDX-License-Identifier: Apache-2.0
# Looks for virtualization of its own, as a guest on AMD and on Intel would, and tries to switch it on.
# Expect: status 0x1
.include "guest.inc"
_start:
	jmp	start
.include "trap.inc"
start:	traps
	mov	$1, %eax
	cpuid
	clear	0x101, 1 << 5, %ecx		# VMX
	mov	$0x80000001, %eax
	xor	%ecx, %ecx
	cpuid
	clear	0x102, 1 << 2, %ecx		# SVM

	# EFER, which may be written: what it has, and with SVME.
	mov	$0xc0000080, %ecx
	rdmsr
	try	wrmsr
	test	%r14d, %r14d
	jz	1f
	report	0x103
	stop
1:	or	$(1 << 12), %eax
	refused	0x104, wrmsr

	# CR4 as it is, and with VMXE.
	mov	%cr4, %rax
	try	mov %rax, %cr4
	test	%r14d, %r14d
	jz	1f
	report	0x105
	stop
1:	or	$(1 << 13), %rax
	refused	0x106, mov %rax, %cr4

	mov	$0x480, %ecx			# IA32_VMX_BASIC
	refused	0x107, rdmsr
	lea	stack_end(%rip), %rax
	refused	0x108, vmrun %rax
	refused	0x109, vmload %rax
	refused	0x10a, vmxon idt_pointer(%rip)
	refused	0x10b, vmxoff
	report	1
	stop
