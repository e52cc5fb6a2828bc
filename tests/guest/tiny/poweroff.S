# SPDX-License-Identifier: Apache-2.0
# SLP_EN in the sleep control register. A write without it does nothing.
# Expect: exit 0x2 powered itself off
.include "guest.inc"
_start:
	mov	$SLEEP_PORT, %dx
	mov	$0x14, %al
	out	%al, %dx
	mov	$0x34, %al
	out	%al, %dx
	report	0x666
	stop
