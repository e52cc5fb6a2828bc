# SPDX-License-Identifier: Apache-2.0
# Drives the disk as a driver does: capacity, a write of one sector, a flush, the sector read back into
# other memory.
# Expect: status 0x1
.include "guest.inc"
.include "disk.inc"
_start:
	map_devices
	disk_start
	mov	$OUTBUF, %edi
	mov	$512, %ecx
	mov	$0x5a, %al
	rep stosb
	movq	$7, HEADER + 8
	descriptor 0, HEADER, 16, 1, 1
	descriptor 1, OUTBUF, 512, 1, 2
	descriptor 2, STATUS, 1, 2, 0
	request	1			# OUT
	descriptor 0, HEADER, 16, 1, 2
	request	4			# FLUSH
	descriptor 0, HEADER, 16, 1, 1
	descriptor 1, INBUF, 512, 3, 2
	request	0			# IN
	mov	$OUTBUF, %esi
	mov	$INBUF, %edi
	mov	$512, %ecx
	repe cmpsb
	jne	differs
	report	1
	stop
no_disk: report	0x101
	stop
failed:	report	0x102
	stop
differs: report	0x103
	stop
