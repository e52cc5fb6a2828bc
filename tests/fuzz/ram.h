/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of a guest that a target plays: of the same size for all inputs, and allocated once. */
#pragma once

#include "input.h"
#include "vmm/core/gmem.h"

/* Exactly len zeros on the heap: one byte beyond is a find. */
static inline void fuzz_ram(struct gmem *mem, size_t len)
{
	if (!mem->base)
		mem->base = aligned_alloc(4096, len);
	mem->size = len;
	MUST(mem->base);
	memset(mem->base, 0, len);
}
