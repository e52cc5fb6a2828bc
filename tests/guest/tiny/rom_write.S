# SPDX-License-Identifier: Apache-2.0
# Finds the root image in the memory map (e820 type 12), writes to it by several widths, and reads
# back: nothing may have changed. Expect: status 0x1
.include "guest.inc"
_start:
	movzbl	0x1e8(%rsi), %ecx	# e820_entries
	lea	0x2d0(%rsi), %rdi	# e820_table, 20 bytes an entry
1:	cmpl	$12, 16(%rdi)
	je	2f
	add	$20, %rdi
	loop	1b
	report	0x101			# no such entry
	stop
2:	mov	(%rdi), %rbx
	mov	1024(%rbx), %r8		# the erofs superblock: not zero
	test	%r8, %r8
	jz	3f
	movq	$-1, 1024(%rbx)
	movl	$-1, 1024(%rbx)
	movb	$-1, 1024(%rbx)
	lock incq 1024(%rbx)
	cmp	1024(%rbx), %r8
	jne	4f
	report	1
	stop
3:	report	0x102			# image not visible
	stop
4:	report	0x103			# image changed
	stop
