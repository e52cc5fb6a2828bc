# SPDX-License-Identifier: Apache-2.0
# Switches performance counters on, those of Intel and both kinds of AMD, and looks whether one counts
# the instructions of a loop. Each may be refused, or stand still. Expect: status 0x1
.include "guest.inc"
_start:
	jmp	start
.include "trap.inc"

.set RETIRED, 0x4300c0			# instructions, of user and kernel; enabled

.macro set_msr msr, value
	mov	$\msr, %ecx
	mov	$\value, %eax
	xor	%edx, %edx
	try	wrmsr
.endm

# The counter that `what` reads, before and after a while.
.macro stands value, index, what
	mov	$\index, %ecx
	try	\what
	mov	%eax, %r8d
	mov	%r14d, %r9d
	mov	$100000, %ecx
6:	dec	%ecx
	jnz	6b
	mov	$\index, %ecx
	try	\what
	cmp	%r14d, %r9d
	jne	5f
	test	%r14d, %r14d
	jnz	6f
	cmp	%eax, %r8d
	je	6f
5:	report	\value
	stop
6:
.endm

start:	traps
	mov	$0xa, %eax
	xor	%ecx, %ecx
	cpuid
	clear	0x101, 0xff, %eax		# version of Intel's counters
	mov	$1, %eax
	cpuid
	clear	0x102, 1 << 15, %ecx		# PDCM
	mov	$0x80000001, %eax
	xor	%ecx, %ecx
	cpuid
	clear	0x103, 1 << 10 | 1 << 23 | 1 << 24 | 1 << 28, %ecx

	set_msr	0xc0010000, RETIRED		# the K7's
	set_msr	0xc0010200, RETIRED		# of a core of later ones
	set_msr	0x186, RETIRED			# Intel's
	set_msr	0x38d, 3			# one of fixed purpose
	set_msr	0x38f, 1			# and the switch of all
	stands	0x110, 0xc0010004, rdmsr
	stands	0x111, 0xc0010201, rdmsr
	stands	0x112, 0xc1, rdmsr
	stands	0x113, 0x309, rdmsr
	stands	0x114, 0, rdpmc
	stands	0x115, 1 << 30, rdpmc
	report	1
	stop
