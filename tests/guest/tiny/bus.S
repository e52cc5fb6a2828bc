# SPDX-License-Identifier: Apache-2.0
# Reads and writes all over the device windows, in all widths and unaligned, and where nothing is:
# the VMM must not mind, the device must still be there afterwards, and nothing reads as ones.
# Expect: status 0x1
.include "guest.inc"
_start:
	map_devices
	mov	$MMIO_BASE, %ebx
	mov	$0x1000, %ecx
1:	mov	-1(%rbx,%rcx), %al
	mov	-1(%rbx,%rcx), %ax
	mov	-1(%rbx,%rcx), %eax
	mov	-1(%rbx,%rcx), %rax
	movb	$0xff, -1(%rbx,%rcx)
	movw	$0xffff, -1(%rbx,%rcx)
	loop	1b
	mov	$IOAPIC_BASE, %ebx
	mov	$0x100, %ecx
2:	mov	%ecx, (%rbx)
	movl	$0x100ff, 0x10(%rbx)	# masked, so that nothing is delivered
	mov	0x10(%rbx), %eax
	mov	(%rbx,%rcx), %eax
	loop	2b
	mov	$(MMIO_BASE + 0x100000), %ebx
	movl	$0, (%rbx)
	cmpl	$-1, (%rbx)
	jne	3f
	mov	$MMIO_BASE, %ebx
	cmpl	$0x74726976, (%rbx)	# MagicValue of virtio-mmio
	jne	4f
	mov	$0x1234, %dx		# a port that nobody has
	in	%dx, %eax
	cmp	$-1, %eax
	jne	5f
	report	1
	stop
3:	report	0x103
	stop
4:	report	0x104
	stop
5:	report	0x105
	stop
