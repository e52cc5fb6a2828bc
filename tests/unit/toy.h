/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small virtio device of the tests' own, and a driver of its registers that is
 * also able to do everything wrong.
 */
#pragma once

#include "vmm/virtio/mmio.h"
#include "vmm/virtio/virtio_spec.h"

#define TOY_RAM     (1u << 20)
#define TOY_QUEUES  2u
#define TOY_QMAX    64u
#define TOY_FEATURE (1ull << 3)

struct toy {
	struct virtio_dev dev;
	struct gmem mem;
	unsigned irqs, deferred, notified[TOY_QUEUES], resets, activations, forks;
	int activate_rc;
	uint32_t own_state;
};

/* A new device over t->mem. */
void toy_init(struct toy *t);

/* Its defer_notify, for tests that want one. */
void toy_defer(void *arg);

/* A register of four bytes. */
void toy_write(struct toy *t, uint64_t reg, uint32_t v);
uint32_t toy_read(struct toy *t, uint64_t reg);

/* From a reset to DRIVER, to FEATURES_OK, to DRIVER_OK with all queues. */
void toy_to_driver(struct toy *t);
void toy_to_features(struct toy *t);
void toy_to_running(struct toy *t);

/* Steps of these: the features that the driver takes, and one queue. */
void toy_features(struct toy *t, uint64_t f);
void toy_queue(struct toy *t, uint32_t q);

/* Puts a chain of one descriptor into queue q without notifying. */
void toy_offer(struct toy *t, unsigned q, uint64_t addr);

/* cmocka fixture. */
int toy_setup(void **state);
int toy_teardown(void **state);
