/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cursors that write and read little-endian integers of 1 to 8 bytes, for
 * packet headers and saved state. A cursor that runs out of room goes bad and
 * stays bad (writes vanish, reads give 0), so a caller checks once at the end.
 * Any thread; no state of its own; fork: nothing.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes_out {
	uint8_t *p;
	size_t left;
	bool bad;
};

struct bytes_in {
	const uint8_t *p;
	size_t left;
	bool bad;
};

static inline void bytes_put(struct bytes_out *o, uint64_t v, unsigned n)
{
	if (o->bad || o->left < n) {
		o->bad = true;
		return;
	}
	for (unsigned i = 0; i < n; i++)
		o->p[i] = (uint8_t)(v >> (8 * i));
	o->p += n;
	o->left -= n;
}

static inline uint64_t bytes_get(struct bytes_in *in, unsigned n)
{
	uint64_t v = 0;

	if (in->bad || in->left < n) {
		in->bad = true;
		return 0;
	}
	for (unsigned i = 0; i < n; i++)
		v |= (uint64_t)in->p[i] << (8 * i);
	in->p += n;
	in->left -= n;
	return v;
}

static inline uint8_t bytes_get8(struct bytes_in *in)
{
	return (uint8_t)bytes_get(in, 1);
}

static inline uint16_t bytes_get16(struct bytes_in *in)
{
	return (uint16_t)bytes_get(in, 2);
}

static inline uint32_t bytes_get32(struct bytes_in *in)
{
	return (uint32_t)bytes_get(in, 4);
}
