/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Frama-C does not know of GCC and of the C library, in its own terms. An
 * atomic load is a volatile one: Eva takes its value for any that the type has,
 * each time, which is just what a guest on another processor can do.
 */
#pragma once

#include <endian.h>
#include <stdint.h>

#include "__fc_builtin.h"

#define __atomic_load_n(p, order)     (*(const volatile __typeof__(*(p)) *)(p))
#define __atomic_store_n(p, v, order) (*(volatile __typeof__(*(p)) *)(p) = (v))
#define __atomic_thread_fence(order)  ((void)0)

/* This processor's order is the devices' order. */
#define le16toh(x) (x)
#define le32toh(x) (x)
#define le64toh(x) (x)
#define htole16(x) (x)
#define htole32(x) (x)
#define htole64(x) (x)

static inline uint64_t any64(void)
{
	return Frama_C_unsigned_long_interval(0, UINT64_MAX);
}

static inline uint32_t any32(void)
{
	return (uint32_t)Frama_C_unsigned_long_interval(0, UINT32_MAX);
}

static inline uint16_t any16(void)
{
	return (uint16_t)Frama_C_unsigned_long_interval(0, UINT16_MAX);
}

static inline _Bool any_bool(void)
{
	return (_Bool)Frama_C_interval(0, 1);
}
