/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many lines of the log somebody may cause who can do so at will: some at once, and so many in
 * each second after that. Of those beyond it one line says how many there were, within a second or
 * two.
 *
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include "lib/loop.h"

#include <stdbool.h>
#include <stdint.h>

struct log_budget {
	struct loop *loop;
	const char *who; /* for that line; not copied */
	unsigned int burst, each_second;
	unsigned int lines; /* that may be written now */
	uint64_t at_ns;     /* when that was counted */
	uint64_t more;      /* that were not written, and not told of */
	struct loop_timer tell;
};

void log_budget_init(struct log_budget *b, struct loop *loop, const char *who, unsigned int burst,
		     unsigned int each_second);
/* Whether a line may be written: it counts. */
bool log_budget_take(struct log_budget *b);
/* Tells what was not told. Harmless on zeroes. */
void log_budget_stop(struct log_budget *b);
