/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A machine that is nothing but its disk, without KVM: the device, a driver for it, and a loop.
 */
#pragma once

#include "blk_rig.h"
#include "vmm/core/machine.h"

struct disk_world {
	struct rig r; /* a driver; its own disk is not used */
	struct machine m;
	struct loop loop;
	unsigned reports;
	int errnum;
	uint64_t failures;
	unsigned next; /* cluster that nobody has written */
};

/* cmocka fixtures: *state is a struct disk_world with a started driver. */
int disk_world_setup(void **state);
int disk_world_teardown(void **state);

/* Runs the loop for so long: how often it woke up. */
unsigned disk_world_run(struct disk_world *w, unsigned ms);

/* Nothing wakes it. */
void disk_world_idle(struct disk_world *w);

/* n forks, each after a write; the children are nobody's. */
void disk_world_grow(struct disk_world *w, unsigned n);

/* Runs the loop until so many layers are left; it must come to that. */
void disk_world_until_layers(struct disk_world *w, unsigned n);
