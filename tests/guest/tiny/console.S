# SPDX-License-Identifier: Apache-2.0
# Prints by a string instruction, byte by byte after that.
# Expect: console hello, world
# Expect: status 0x1
.include "guest.inc"
_start:
	lea	text(%rip), %rsi
	mov	$6, %ecx
	mov	$CONSOLE, %dx
	rep outsb
	mov	$7, %ecx
1:	lodsb
	out	%al, %dx
	loop	1b
	report	1
	stop
text:	.ascii	"hello, world\n"
