/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The family tree: every living sandbox, and its ancestors up to the one that
 * was made from a template. Built anew for each request, without recursion: a
 * line of forks may be long.
 */
#include "daemon/tree.h"
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "daemon/reply.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct node {
	char id[SANDBOX_ID_LEN + 1], parent[64];
	int64_t created_ms;
	json_t *json, *children; /* children: inside json */
};

/*
 * Nodes, and an index of them by id: open addressing, slots that hold the number of a
 * node + 1 (0: free), at least twice as many as there are nodes.
 */
struct tree {
	struct node *all;
	uint32_t *slots;
	size_t n, cap; /* slots: 2 * cap, a power of two */
};

static size_t first_slot(const struct tree *t, const char *id)
{
	uint64_t h = 0xcbf29ce484222325ull; /* FNV-1a */

	for (; *id; id++)
		h = (h ^ (uint8_t)*id) * 0x100000001b3ull;
	return (size_t)(h ^ h >> 32) & (2 * t->cap - 1);
}

static void index_add(struct tree *t, size_t node)
{
	size_t at = first_slot(t, t->all[node].id);

	while (t->slots[at])
		at = (at + 1) & (2 * t->cap - 1);
	t->slots[at] = (uint32_t)node + 1;
}

/* All of them anew: there are more slots, or the nodes have other places. */
static void index_build(struct tree *t)
{
	if (t->cap)
		memset(t->slots, 0, 2 * t->cap * sizeof(*t->slots));
	for (size_t i = 0; i < t->n; i++)
		index_add(t, i);
}

static struct node *tree_find(struct tree *t, const char *id)
{
	for (size_t at = first_slot(t, id); t->slots[at]; at = (at + 1) & (2 * t->cap - 1))
		if (strcmp(t->all[t->slots[at] - 1].id, id) == 0)
			return &t->all[t->slots[at] - 1];
	return NULL;
}

/* Room for one more. */
static bool tree_room(struct tree *t)
{
	size_t cap = t->cap ? t->cap * 2 : 64;
	struct node *all;
	uint32_t *slots;

	if (t->n < t->cap)
		return true;
	all = realloc(t->all, cap * sizeof(*all));
	if (!all)
		return false;
	t->all = all;
	slots = realloc(t->slots, 2 * cap * sizeof(*slots));
	if (!slots)
		return false;
	t->slots = slots;
	t->cap = cap;
	index_build(t);
	return true;
}

/* The parent's id of any sandbox there ever was, "" when it has none or is not known. */
static void parent_of(struct daemon *d, const char *id, char out[64])
{
	struct sandbox *sb = registry_find(&d->registry, id, OWNER_ANY);
	struct store_row row;

	out[0] = '\0';
	if (sb) {
		memcpy(out, sb->parent, sizeof(sb->parent));
	} else if (store_find(&d->store, id, OWNER_ANY, &row) > 0) {
		memcpy(out, row.parent, sizeof(row.parent));
	}
}

int tree_is_ancestor(struct daemon *d, const char *id, const struct sandbox *sb)
{
	char at[64], next[64];

	memcpy(at, sb->parent, sizeof(sb->parent));
	for (unsigned int i = 0; i < LIMIT_TREE_DEPTH; i++) {
		if (!at[0])
			return 0;
		if (strcmp(at, id) == 0)
			return 1;
		parent_of(d, at, next);
		memcpy(at, next, sizeof(at));
	}
	return -E2BIG;
}

static struct node *tree_add(struct tree *t, const char *id, const char *parent, const char *state,
			     const char *template, uint32_t generation, int64_t created_ms)
{
	struct node *n;

	if (!tree_room(t))
		return NULL;
	n = &t->all[t->n];
	*n = (struct node){.created_ms = created_ms, .children = json_array()};
	strncpy(n->id, id, sizeof(n->id) - 1);
	strncpy(n->parent, parent, sizeof(n->parent) - 1);
	n->json = n->children
			  ? json_pack("{s:s, s:s, s:s, s:I, s:I, s:o}", "id", id, "state", state,
				      "template", template, "generation", (json_int_t)generation,
				      "created_at", (json_int_t)created_ms, "children", n->children)
			  : NULL;
	if (!n->json)
		return NULL;
	index_add(t, t->n++);
	return n;
}

/* Parents of nodes that are not there yet: they have ended. False: no memory. */
static bool tree_add_ancestors(struct tree *t, struct daemon *d, const char *owner)
{
	size_t most = t->n + LIMIT_TREE;

	for (size_t i = 0; i < t->n && t->n < most; i++) {
		struct store_row row;

		if (!t->all[i].parent[0] || tree_find(t, t->all[i].parent) ||
		    store_find(&d->store, t->all[i].parent, owner, &row) <= 0)
			continue;
		if (!tree_add(t, row.id, row.parent, "ended", row.template, row.generation,
			      row.created_ms))
			return false;
	}
	return true;
}

static int by_age(const void *a, const void *b)
{
	const struct node *x = a, *y = b;

	return x->created_ms != y->created_ms ? (x->created_ms > y->created_ms ? 1 : -1)
					      : strcmp(x->id, y->id);
}

/* Every node into its parent's list, oldest first; those without one are the roots. */
static json_t *tree_link(struct tree *t)
{
	json_t *roots = json_array();
	int rc = roots ? 0 : -1;

	if (t->n)
		qsort(t->all, t->n, sizeof(t->all[0]), by_age);
	index_build(t);
	for (size_t i = 0; i < t->n && rc == 0; i++) {
		struct node *n = &t->all[i];
		struct node *parent = n->parent[0] ? tree_find(t, n->parent) : NULL;

		rc = json_array_append(parent ? parent->children : roots, n->json);
	}
	if (rc == 0)
		return roots;
	json_decref(roots);
	return NULL;
}

void api_tree(struct request *r)
{
	struct daemon *d = r->http->d;
	struct tree t = {0};
	json_t *roots = NULL;
	bool ok = true;

	list_for_each (sb, &d->registry.live, struct sandbox, link)
		if (sb->announced && owner_may(r->owner, sb->owner))
			ok = ok && tree_add(&t, sb->id, sb->parent, "ready", sb->template,
					    sb->generation, sb->created_ms);
	if (ok && tree_add_ancestors(&t, d, r->owner))
		roots = tree_link(&t);
	reply_json(r, 200, roots ? json_pack("{s:o}", "roots", roots) : NULL);
	for (size_t i = 0; i < t.n; i++)
		json_decref(t.all[i].json);
	free(t.slots);
	free(t.all);
}
