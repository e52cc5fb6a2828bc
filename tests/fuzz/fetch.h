/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that changes its memory while a device is at work on it. Whatever the device has copied
 *out of guest memory once (a word of a ring, a descriptor, a header, data of a request) is
 *overwritten at once, and is what it was again when the device is done with the chain. So who reads
 *twice reads two things.
 *
 * A target runs its input twice, first in peace and then with such a guest, and tells here what the
 * device did. Of the second run every word must be that of the first.
 *
 *	fetch_begin(&mem, false); ... fetch_end(); fetch_begin(&mem, true); ... fetch_end();
 *
 * Where that comes in: the walk of the rings is compiled with FETCH_WALK, with which each load of
 * queue.c comes here; the functions that a device calls are in meson.build (fetch_plays); and where
 * data goes on into a file or a socket the target calls fetch_copied().
 *
 * A chain whose segments overlap, or that lies in the rings, reads the same memory twice by right,
 *and is left in peace.
 */
#pragma once

#include <stdint.h>

#ifdef FETCH_WALK
uint16_t fetch_16(const uint16_t *p);
uint64_t fetch_64(const uint64_t *p);
#define __atomic_load_n(p, order) _Generic(*(p), uint16_t : fetch_16, uint64_t : fetch_64)(p)
#else

#include "vmm/core/gmem.h"

#include <stdbool.h>

/* Begins a run; mem stays where it is until its end. Hostile without a first run: nothing is
 * compared. */
void fetch_begin(const struct gmem *mem, bool hostile);

/* All memory is what the guest wrote: before the target looks at it or changes it. */
void fetch_settle(void);

/* The device has copied these bytes: nothing, unless they are of its chain. */
void fetch_copied(const void *p, size_t len);

/* What the device did: must be the same in both runs. */
void fetch_told(const void *p, size_t len);

/* The second run must have told as much as the first. */
void fetch_end(void);
#endif
