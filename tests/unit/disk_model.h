/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layered disk beside plain memory that says what it must contain, and forks of
 * both inside one process: what fork(2) does to a VMM, done by copies and dup().
 */
#pragma once

#include "vmm/disk/layers.h"

struct disk_model {
	struct layers l;
	uint8_t *want; /* l.size bytes */
};

/* Where new layers are made; a new layer there. */
extern const char *disk_model_dir;
struct layer_fds disk_model_layer(void);

void disk_model_init(struct disk_model *d, uint64_t size);
void disk_model_free(struct disk_model *d);

/* Writes len bytes made from seed at off, in pieces; both sides change unless it fails. */
int disk_model_write(struct disk_model *d, uint64_t off, uint32_t len, uint32_t seed);
void disk_model_zero(struct disk_model *d, uint64_t off, uint64_t len);
void disk_model_discard(struct disk_model *d, uint64_t off, uint64_t len);

/* Compares len bytes at off; all of them; and the invariants of layers.c. */
void disk_model_check(struct disk_model *d, uint64_t off, uint64_t len);
void disk_model_check_all(struct disk_model *d);

/* Forks parent into child, both with new tops. */
void disk_model_fork(struct disk_model *parent, struct disk_model *child);
