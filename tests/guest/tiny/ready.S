# SPDX-License-Identifier: Apache-2.0
# Expect: status 0x1
.include "guest.inc"
_start:
	report	1
	stop
