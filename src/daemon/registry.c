/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of sandboxes. Linear search: a host runs hundreds of them, and a
 * comparison of ids is nothing beside the request that asks for it.
 */
#include "daemon/registry.h"
#include "daemon/owner.h"
#include "daemon/sandbox.h"

#include <string.h>

void registry_init(struct registry *r, uint32_t max)
{
	*r = (struct registry){.max = max};
	list_init(&r->live);
	list_init(&r->dying);
}

bool registry_reserve(struct registry *r, uint32_t n)
{
	if (n > r->max || r->places > r->max - n)
		return false;
	r->places += n;
	return true;
}

void registry_unreserve(struct registry *r, uint32_t n)
{
	r->places -= n;
}

struct sandbox *registry_find(struct registry *r, const char *id, const char *owner)
{
	list_for_each (sb, &r->live, struct sandbox, link) {
		if (sb->announced && strcmp(sb->id, id) == 0)
			return owner_may(owner, sb->owner) ? sb : NULL;
	}
	return NULL;
}

void registry_add(struct registry *r, struct sandbox *sb)
{
	list_add_tail(&r->live, &sb->link);
}

void registry_ended(struct registry *r, struct sandbox *sb)
{
	list_del(&sb->link);
	list_add_tail(&r->dying, &sb->link);
	if (sb->counted)
		r->places--;
}

void registry_gone(struct registry *r, struct sandbox *sb)
{
	(void)r;
	list_del(&sb->link);
}

bool registry_empty(const struct registry *r)
{
	return list_empty(&r->live) && list_empty(&r->dying);
}
