/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All sandboxes of this daemon: those that live, and those whose VMM is still
 * being reaped; and the limit of how many may live. A place is reserved before
 * a sandbox is made, so that a burst is refused at once and not in the middle.
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "lib/list.h"

#include <stdbool.h>
#include <stdint.h>

struct sandbox;

struct registry {
	struct list live;     /* forking to ready, those of the pool too, oldest first */
	struct list dying;    /* ended, process not yet reaped */
	uint32_t places, max; /* taken by sandboxes that count, or reserved */
};

void registry_init(struct registry *r, uint32_t max);
/* n places at once, or none. */
bool registry_reserve(struct registry *r, uint32_t n);
void registry_unreserve(struct registry *r, uint32_t n);
/* A sandbox that lives, was announced, and is one of the owner's who asks, or NULL. */
struct sandbox *registry_find(struct registry *r, const char *id, const char *owner);
void registry_add(struct registry *r, struct sandbox *sb);
void registry_ended(struct registry *r, struct sandbox *sb);
void registry_gone(struct registry *r, struct sandbox *sb);
bool registry_empty(const struct registry *r);
