/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers of disks in memory, on a host whose storage fails when it is told to: the calls that
 * disks make are played (meson.build: fake_storage_plays, --wrap).
 */
#pragma once

#include "vmm/disk/layers.h"

struct fake_storage {
	unsigned good;     /* calls that go well before the others */
	unsigned bad;      /* calls that then fail; of a write but the last one some bytes arrive */
	unsigned failures; /* calls that have failed */
	/* If there is one: these bytes have been written. */
	void (*copied)(const void *p, size_t len);
};

extern struct fake_storage fake_storage;

struct layer_fds fake_storage_layer(void);
void fake_storage_drop(struct layer_fds *f);
