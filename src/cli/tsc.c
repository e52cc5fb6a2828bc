/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures the time-stamp counter against CLOCK_MONOTONIC. A reading is the
 * tightest of several tries, so that a preemption between its two halves does
 * not count: the error of 20 ms is a few millionths.
 */
#include "cli/tsc.h"

#include "lib/io.h"

#include <time.h>
#include <x86intrin.h>

#define READING_TRIES 32
#define WINDOW_NS     20000000ull

static struct tsc_reading tsc_read(void)
{
	struct tsc_reading best = {0};
	uint64_t best_gap = UINT64_MAX;

	for (int i = 0; i < READING_TRIES; i++) {
		uint64_t before = __rdtsc();
		uint64_t ns = io_now_ns();
		uint64_t after = __rdtsc();

		if (after - before < best_gap) {
			best_gap = after - before;
			best = (struct tsc_reading){.ticks = before + best_gap / 2, .ns = ns};
		}
	}
	return best;
}

void tsc_begin(struct tsc_reading *first)
{
	*first = tsc_read();
}

unsigned int tsc_khz(const struct tsc_reading *first)
{
	uint64_t passed = io_now_ns() - first->ns;
	struct tsc_reading last;

	if (passed < WINDOW_NS) {
		struct timespec ts = {.tv_nsec = (long)(WINDOW_NS - passed)};

		nanosleep(&ts, NULL);
	}
	last = tsc_read();
	return (unsigned int)((__uint128_t)(last.ticks - first->ticks) * 1000000u /
			      (last.ns - first->ns));
}
