/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POST /v1/sandboxes/:id/merge_into/:other: the VM of the winner (:other) goes on
 * under the id :id, the VM that had it ends. The winner's id is dead afterwards,
 * its children are those of :id.
 *
 * Whether it can be forked is the winner's. An id that was promised a VM that
 * cannot keeps it: nothing is merged into one that is not forkable.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/egress/egress.h"
#include "daemon/egress/grant.h"
#include "daemon/reply.h"
#include "daemon/tree.h"
#include "lib/io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Answered when the VM that lost is gone. */
struct merge {
	struct request *r;
	struct sandbox_user user;
};

static void merge_done(struct sandbox_user *u, const char *reason)
{
	struct merge *m = u->arg;

	(void)reason;
	reply_empty(m->r);
}

static void merge_end(struct request *r)
{
	struct merge *m = r->state;

	sandbox_drop_user(&m->user);
	free(m);
}

static const struct request_ops merge_ops = {.end = merge_end};

/*
 * The winner takes the place of sb in the tree. Where sb descends from the winner that
 * place would be below itself; then it stays where it is. Where the line is too long to
 * know, it has no place below anything.
 */
static const char *merged_parent(struct sandbox *sb, struct sandbox *winner)
{
	int rc = tree_is_ancestor(sb->d, winner->id, sb);

	if (rc < 0)
		return "";
	return rc ? winner->parent : sb->parent;
}

/* Ids in memory as they are in the database now. */
static void merge_names(struct sandbox *sb, struct sandbox *winner, const char *parent)
{
	json_t *metadata = winner->metadata;

	list_for_each (it, &sb->d->registry.live, struct sandbox, link)
		if (it != sb && it != winner && strcmp(it->parent, winner->id) == 0)
			memcpy(it->parent, sb->id, sizeof(it->parent));
	memcpy(winner->id, sb->id, sizeof(winner->id));
	memmove(winner->parent, parent, strlen(parent) + 1);
	egress_renamed(winner); /* its grant stays its own */
	winner->created_ms = sb->created_ms;
	winner->metadata = sb->metadata;
	sb->metadata = metadata;
}

static void merge_start(struct request *r, struct sandbox *sb, struct sandbox *winner)
{
	struct merge *m = calloc(1, sizeof(*m));
	struct store_row row = {
		.memory_mib = winner->memory_mib,
		.vcpus = winner->vcpus,
		.disk_mib = winner->disk_mib,
		.generation = winner->generation,
		.grant = egress_grant(winner),
	};

	if (!m) {
		reply_json(r, 500, NULL);
		return;
	}
	snprintf(row.id, sizeof(row.id), "%s", sb->id);
	snprintf(row.parent, sizeof(row.parent), "%s", merged_parent(sb, winner));
	if (store_merge(&sb->d->store, &row, winner->id, (int64_t)(io_realtime_ns() / 1000000)) <
	    0) {
		free(m);
		reply_error(r, 500, "internal", "the state database cannot be written", NULL, NULL);
		return;
	}
	merge_names(sb, winner, row.parent);
	m->r = r;
	r->ops = &merge_ops;
	r->state = m;
	/* Its row is the winner's now. */
	sb->stored = false;
	sandbox_add_waiting(sb, &m->user, merge_done, m);
	sandbox_end(sb, true, "merged: the sandbox goes on as another one's");
}

void api_merge(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r), *winner;

	if (!sb)
		return;
	if (strcmp(r->match.id, r->match.other) == 0) {
		reply_invalid(r, "winner", "a sandbox cannot be merged into itself");
		return;
	}
	winner = api_find_by_id(r, r->match.other, "winner");
	if (!winner)
		return;
	if (strcmp(sb->root, winner->root) != 0) {
		reply_error(r, 409, "other_lineage",
			    "the two sandboxes do not descend from the same one", NULL, NULL);
		return;
	}
	if (!sb->forkable)
		reply_not_forkable(r, "no other can take its place");
	else if (sandbox_is_ending(winner)) /* or one that lives would end for one that is gone */
		reply_other_ended(
			r, winner->reason[0] ? winner->reason : "its virtual machine is gone",
			"winner");
	else
		merge_start(r, sb, winner);
}
