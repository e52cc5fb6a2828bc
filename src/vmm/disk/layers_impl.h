/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layered disk as its parts see it: layers.c (contents and files), layers_thin.c
 * (which layers are emptied). Private to these. Thread, fork: see layers.h.
 */
#pragma once

#include "vmm/disk/layers.h"

static inline uint64_t layers_offset(uint32_t cluster)
{
	return (uint64_t)cluster * LAYERS_CLUSTER;
}

/* What would be below the top if it were pushed now is more than may be there. */
static inline bool layers_too_much_below(const struct layers *l)
{
	return l->stored > LAYERS_BELOW * l->clusters;
}

/* The top has all bytes of the clusters that [off, end) touches. */
void layers_claim(struct layers *l, uint64_t off, uint64_t end);

/* After a failed write: what it left in clusters that are not the top's must not show later. */
void layers_unwrite(struct layers *l, uint64_t off, uint64_t end);

/* Whole clusters: nobody holds them any more. */
void layers_drop(struct layers *l, uint32_t first, uint32_t end);
