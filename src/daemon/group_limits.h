/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is written into the files of a control group, and what is read there, as
 * text. Thread: any. fork: no state.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define GROUP_LIMITS_MAX 8

struct group_limit {
	const char *file;
	char value[96];
};

/* In the order in which they are written. */
struct group_limits {
	struct group_limit of[GROUP_LIMITS_MAX];
	size_t n;
};

/* One more, of GROUP_LIMITS_MAX; value as printf. */
void group_limits_add(struct group_limits *l, const char *file, const char *value, ...)
	__attribute__((format(printf, 3, 4)));

/* Of memory.events: processes that were killed for want of memory. */
uint64_t group_oom_kills(const char *events);
