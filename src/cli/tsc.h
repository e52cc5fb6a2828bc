/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rate of the processor's time-stamp counter. The emulated processor shows
 * the counter of the real one, and its kernel cannot measure the rate well on
 * a busy machine: it is measured here and told to it.
 *
 * Two readings, some milliseconds apart: tsc_begin() early in a program,
 * tsc_khz() when the rate is needed. Any thread; fork: plain memory.
 */
#pragma once

#include <stdint.h>

struct tsc_reading {
	uint64_t ticks, ns; /* taken together, to some tens of nanoseconds */
};

void tsc_begin(struct tsc_reading *first);

/* Kilohertz. Sleeps until at least 20 ms have passed since tsc_begin(). */
unsigned int tsc_khz(const struct tsc_reading *first);
