/* SPDX-License-Identifier: Apache-2.0 */
/* What vmm-jail-probe tries, as numbers of system calls and their arguments. */
#pragma once

#include <stddef.h>

struct probe {
	const char *name;
	long nr;
	unsigned long a[6];
};

/* where: "any", or "vcpu" for what the process may do and a vCPU's thread may not. */
struct probe_table {
	const char *where;
	const struct probe *probe;
	size_t n;
};

#define PROBE_TABLES 3

extern const struct probe_table probe_tables[PROBE_TABLES];

/* For pointers of system calls that a hole in the filter would let through. */
extern char page[4096];
