# SPDX-License-Identifier: Apache-2.0
# Programs the vsock queues with addresses outside RAM and activates the device: the device must ask
# for a reset (DEVICE_NEEDS_RESET, 0x40) instead of anything else, and take a reset.
# Expect: status 0x1
.include "guest.inc"
.macro reg_write off, value
	movl	$\value, \off(%rbx)
.endm
_start:
	map_devices
	mov	$MMIO_BASE, %ebx
	reg_write 0x70, 0
	reg_write 0x70, 1
	reg_write 0x70, 3
	reg_write 0x24, 1		# DriverFeaturesSel 1: VERSION_1
	reg_write 0x20, 1
	reg_write 0x70, 11		# FEATURES_OK
	xor	%ecx, %ecx
1:	mov	%ecx, 0x30(%rbx)	# QueueSel
	reg_write 0x38, 128
	reg_write 0x80, 0xfffff000	# descriptors: no RAM there
	reg_write 0x84, 0xffffffff
	reg_write 0x90, 0xd0000000	# driver area: the device itself
	reg_write 0x94, 0
	reg_write 0xa0, 0xfffffffc	# device area: across 4 GiB
	reg_write 0xa4, 0
	reg_write 0x44, 1		# QueueReady
	inc	%ecx
	cmp	$3, %ecx
	jne	1b
	reg_write 0x70, 15		# DRIVER_OK
	reg_write 0x50, 0
	reg_write 0x50, 1
	reg_write 0x50, 2
	mov	0x70(%rbx), %eax
	test	$0x40, %eax
	jz	2f
	reg_write 0x70, 0
	cmpl	$0, 0x70(%rbx)
	jne	3f
	report	1
	stop
2:	or	$0x200, %eax
	report_reg %eax
	stop
3:	report	0x103
	stop
