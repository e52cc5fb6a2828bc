/* SPDX-License-Identifier: Apache-2.0 */
/* Hexadecimal digits, of either case. Stateless. fork: no state. */
#pragma once

#include <stdint.h>

/* 0 to 15; -1: it is none. */
static inline int hex_value(uint8_t c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}
