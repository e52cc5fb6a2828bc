# SPDX-License-Identifier: Apache-2.0
# Uses the disk for ever: reads a sector, compares it with what memory says it must hold, writes
# something new that no other VM writes. To be forked at any moment (vmdisk.c): memory and disk of
# every copy must stay of one mind. Reports 1 every 64 rounds, and what went wrong. All other
# processors compute without a pause, each comparing its registers with memory; there is no report
# before each of them has got on since the last one.
# Expect: status 0x1
.include "guest.inc"
.include "disk.inc"
.include "smp.inc"
.set TABLE, 0x210000			# what each of 256 sectors holds, one in a cluster of the disk
.set AREA, 0x230000			# of each other processor: its value, its turns, those seen
_start:
	map_devices
	smp_start
	disk_start
	xor	%r12d, %r12d
round:	inc	%r12d
	imul	$7, %r12d, %r13d
	and	$255, %r13d
	mov	%r13, %rax
	shl	$7, %rax
	mov	%rax, HEADER + 8
	descriptor 0, HEADER, 16, 1, 1
	descriptor 1, INBUF, 512, 3, 2
	descriptor 2, STATUS, 1, 2, 0
	request	0			# IN
	mov	TABLE(,%r13,4), %eax
	cmp	%eax, INBUF
	jne	differs
	cmp	%eax, INBUF + 508
	jne	differs
	rdtsc
	mov	%eax, %r14d
	mov	$OUTBUF, %edi
	mov	$128, %ecx
	rep stosl
	descriptor 1, OUTBUF, 512, 1, 2
	request	1			# OUT
	mov	%r14d, TABLE(,%r13,4)
	test	$63, %r12d
	jnz	round
	descriptor 0, HEADER, 16, 1, 2
	request	4			# FLUSH
	mov	%r15d, %ecx
others:	dec	%ecx
	jz	all_well
	mov	%ecx, %edi
	shl	$12, %edi
1:	pause
	mov	AREA + 8(%rdi), %rax
	cmp	AREA + 16(%rdi), %rax
	je	1b
	mov	%rax, AREA + 16(%rdi)
	jmp	others
all_well:
	report	1
	jmp	round
ap:	shl	$12, %r8d
	movabs	$6364136223846793005, %r11
	xor	%r10d, %r10d
turn:	mov	$10000, %ecx
1:	cmp	%r10, AREA(%r8)
	jne	ap_differs
	imul	%r11, %r10
	inc	%r10
	mov	%r10, AREA(%r8)
	dec	%ecx
	jnz	1b
	incq	AREA + 8(%r8)
	jmp	turn
ap_differs:
	report	0x104
	stop
no_disk: report	0x101
	stop
failed:	report	0x102
	stop
differs: report	0x103
	stop
