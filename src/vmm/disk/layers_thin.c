/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers of a disk that are too many, or take up too much: which of them is
 * emptied into the top, and how far. Invariants, at every return:
 * - victim is a lower layer, or LAYERS_MAX; it holds nothing before victim_cursor.
 * - What is emptied comes to an end, if nobody writes: with each layer that is
 *   closed there is one less, and never more storage that is of no use.
 *
 * Thread: under the owner's lock. Fork: see layers.h.
 */
#include "vmm/disk/layer_file.h"
#include "vmm/disk/layers_impl.h"

#include <errno.h>
#include <string.h>

/* Clusters that the files below the top have storage for, and this disk no use. */
static uint32_t waste(const struct layers *l)
{
	const struct layer *top = &l->layer[l->top];

	return (l->stored - top->stored) - (l->used - top->held);
}

/* There are more layers than there should be. */
static bool too_many(const struct layers *l)
{
	return l->count > (l->flattening ? LAYERS_FLATTEN_TO : LAYERS_FLATTEN_AT);
}

/* Storage beyond the disk's size, in quarters of it; what flattening cannot help is none. */
static bool beyond(const struct layers *l, uint32_t quarters)
{
	return l->stored > l->clusters + l->clusters / 4 * quarters && waste(l);
}

/* They take up more of the host than they should. */
static bool too_large(const struct layers *l)
{
	return beyond(l, l->tidying ? LAYERS_TIDY_TO : LAYERS_TIDY_AT);
}

/* Which of two is to be emptied: the one with less in it, or that gives back more for each copy. */
static bool better(const struct layer *a, const struct layer *b, bool smallest)
{
	if (smallest)
		return a->held < b->held;
	return (uint64_t)a->held * b->stored < (uint64_t)b->held * a->stored;
}

/* Of the lower layers; LAYERS_MAX: there is none. */
static unsigned int choose_lower(const struct layers *l, bool smallest)
{
	unsigned int best = LAYERS_MAX;

	for (unsigned int i = 0; i < LAYERS_MAX; i++)
		if (l->layer[i].fd >= 0 && i != l->top &&
		    (best == LAYERS_MAX || better(&l->layer[i], &l->layer[best], smallest)))
			best = i;
	return best;
}

/* What has been emptied of another one stays so. */
static void empty_next(struct layers *l, unsigned int victim)
{
	if (l->victim == victim)
		return;
	l->victim = victim;
	l->victim_cursor = 0;
}

/* Copies the next cluster of the victim, of which there is one, into the top. */
static int move_one(struct layers *l)
{
	const uint8_t *p = memchr(l->map + l->victim_cursor, (int)l->victim + 1,
				  l->clusters - l->victim_cursor);
	uint32_t c = (uint32_t)(p - l->map);
	struct iovec v = {l->bounce, LAYERS_CLUSTER};
	int rc = layer_file_read(l->layer[l->victim].fd, &(struct layer_iov){&v, 1}, LAYERS_CLUSTER,
				 layers_offset(c));

	if (rc)
		return rc;
	l->copied++;
	if (memcmp(l->bounce, l->zeros, LAYERS_CLUSTER) == 0) {
		layers_drop(l, c, c + 1);
		return 0;
	}
	v = (struct iovec){l->bounce, LAYERS_CLUSTER};
	rc = layer_file_write(l->top_rw, &(struct layer_iov){&v, 1}, LAYERS_CLUSTER,
			      layers_offset(c));
	if (rc)
		layers_unwrite(l, layers_offset(c), layers_offset(c + 1));
	else
		layers_claim(l, layers_offset(c), layers_offset(c + 1));
	l->victim_cursor = c; /* only the top gets new clusters: none before this comes back */
	return rc;
}

bool layers_wants_flatten(const struct layers *l)
{
	return too_many(l) || too_large(l);
}

bool layers_urgent(const struct layers *l)
{
	return l->count > LAYERS_URGENT || beyond(l, LAYERS_TIDY_URGENT);
}

/* Each kind of work that has begun goes on to its own end. */
static bool work_left(struct layers *l)
{
	l->flattening = too_many(l);
	l->tidying = too_large(l);
	return l->flattening || l->tidying;
}

int layers_flatten(struct layers *l, unsigned int max_clusters)
{
	while (max_clusters-- && work_left(l)) {
		int rc;

		if (!l->flattening || l->victim == LAYERS_MAX)
			empty_next(l, choose_lower(l, l->flattening));
		rc = move_one(l);
		if (rc)
			return rc;
	}
	return work_left(l);
}

/* What is nearest to its end is to be emptied next. */
static void choose_smallest(struct layers *l)
{
	unsigned int best = choose_lower(l, true);

	if (l->victim == LAYERS_MAX || l->layer[l->victim].held > l->layer[best].held)
		empty_next(l, best);
}

int layers_make_room(struct layers *l, bool running)
{
	const uint64_t before = l->copied;

	/* An empty top is replaced, not added to. */
	while ((l->count == LAYERS_MAX || layers_too_much_below(l)) &&
	       (running || !layers_top_unused(l))) {
		int rc;

		if (l->count == LAYERS_MAX)
			choose_smallest(l);
		else
			empty_next(l, choose_lower(l, false));
		if (running && l->copied - before + l->layer[l->victim].held > LAYERS_ROOM_CLUSTERS)
			return -EAGAIN;
		rc = layers_flatten(l, 1);
		if (rc < 0)
			return rc;
	}
	return 0;
}
