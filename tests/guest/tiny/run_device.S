# SPDX-License-Identifier: Apache-2.0
# Jumps into a device window: KVM cannot emulate code there. Expect: exit 0x3 could not emulate
.include "guest.inc"
_start:
	map_devices
	lidt	empty(%rip)
	mov	$(MMIO_BASE + 0x800), %eax
	jmp	*%rax
empty:	.quad	0, 0
