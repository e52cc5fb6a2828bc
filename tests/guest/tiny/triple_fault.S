# SPDX-License-Identifier: Apache-2.0
# An exception without an interrupt table. Expect: exit 0x1 rebooted
.include "guest.inc"
_start:
	lidt	empty(%rip)
	ud2
empty:	.quad	0, 0
