/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contents of a disk, as a stack of layers. Space is handled in clusters of
 * LAYERS_CLUSTER bytes. A map says for each cluster which layer holds it, or that
 * none does: it reads as zeros then. A layer is an unlinked sparse file that has
 * its clusters at their own offsets; only the layer on top is ever written.
 *
 * - A write into part of a cluster that a lower layer holds copies the rest up.
 * - What is discarded or zeroed in whole clusters is forgotten, and its space in
 *   the top is given back by a hole. A lower layer of which nothing is used any
 *   more is closed: the host frees it with its last user.
 * - layers_push() ends the life of a top: O(1), whatever the disk holds.
 * - Layers of which there are too many are thinned out by copying into the top
 *   what is used of them, the one with the least first. This is right whoever
 *   else uses the lower layers, because nobody changes those.
 * - Of a lower layer no part is given back: another process may read it. So one of
 *   which little is used is emptied as well when all of them have come to take up
 *   more than the disk's size by LAYERS_TIDY_AT, the one that gives back most for
 *   what is copied first. No push leaves more than LAYERS_BELOW times the size below
 *   the top, and the top has the size at most: a disk never has more than three
 *   times its size of storage, however it is written to and forked. That is counted
 *   in clusters that files have storage for, and in none too few.
 *
 * Each layer comes as two descriptors of one file (struct layer_fds): one for
 * writing, closed when the layer stops being the top, and one for reading. So a
 * process that inherited a layer cannot write to it, whatever becomes of it.
 *
 * Errors: negative errno. After a failed write (-ENOSPC, -EIO...) the range holds
 * old or new bytes, everything else is as before, and the disk works on.
 *
 * Thread: the owner's lock. Nothing allocates after layers_init(). All file access
 * is positioned: file offsets are shared with other processes.
 *
 * Fork: map and counters are plain private memory, so the child has its own; the
 * files are shared and read-only. The parent pushes a new top before fork(2), the
 * child puts its own in place of it: layers_replace_top().
 */
#pragma once

#include "lib/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define LAYERS_CLUSTER    (64u << 10)
#define LAYERS_SIZE_MAX   (64ull << 30)
#define LAYERS_MAX        32u /* files that one disk is made of */
#define LAYERS_FLATTEN_AT 16u /* with more than this many the thinning out begins ... */
#define LAYERS_FLATTEN_TO 8u  /* ... and ends with this many; ... */
#define LAYERS_URGENT     24u /* ... with more than this many it is to be fast */
/* Storage beyond the disk's size, in quarters of it. */
#define LAYERS_TIDY_AT     2u /* with more than this layers begin to be emptied for it ... */
#define LAYERS_TIDY_TO     1u /* ... until it is this; ... */
#define LAYERS_TIDY_URGENT 3u /* ... with more than this it is to be fast */
#define LAYERS_BELOW       2u /* times the disk's size: what may be below the top */
/* So much is copied by layers_make_room() for a guest that stands still meanwhile: 16 MiB. */
#define LAYERS_ROOM_CLUSTERS 256u

/* One new layer: the same empty regular file, opened for reading and writing, and for reading. */
struct layer_fds {
	int rw, ro;
};

struct layer {
	int fd;          /* for reading; -1: this entry is free */
	uint32_t held;   /* clusters that this disk has in it */
	uint32_t stored; /* clusters that the file has storage for, at most */
	bool unsynced;   /* written since the last flush */
};

struct layers {
	uint64_t size;
	uint32_t clusters;
	uint8_t *map; /* 0: zeros; else index of the layer + 1 */
	uint8_t *bounce, *zeros;
	struct layer layer[LAYERS_MAX];
	unsigned int count; /* layers in use, the top included */
	unsigned int top;
	int top_rw;
	bool top_stale;         /* the top may hold bytes of clusters that are not its own */
	uint32_t stored;        /* of all layers */
	bool flattening;        /* because there are too many */
	bool tidying;           /* because they take up too much */
	unsigned int victim;    /* layer being emptied; LAYERS_MAX: none */
	uint32_t victim_cursor; /* it holds nothing before this cluster */
	uint32_t used;          /* clusters that are not zeros */
	uint64_t copied;        /* clusters copied by flattening, since init */
	/* Bytes that writes read and wrote to copy up; the owner sets it to 0 when it counts. */
	uint64_t copied_up;
};

/*
 * An empty disk of `size` bytes (a multiple of LAYERS_CLUSTER, up to LAYERS_SIZE_MAX). The
 * descriptors are taken over on success. -EINVAL: they are not what struct layer_fds says.
 */
__must_check int layers_init(struct layers *l, uint64_t size, struct layer_fds top);
void layers_free(struct layers *l);

/*
 * Transfers between the disk and memory; the range must lie inside the disk. The elements of iov
 * are used up: their contents are undefined afterwards.
 */
__must_check int layers_read(const struct layers *l, uint64_t off, struct iovec *iov, int n);
__must_check int layers_write(struct layers *l, uint64_t off, struct iovec *iov, int n);

/* The range reads as zeros afterwards. */
__must_check int layers_zero(struct layers *l, uint64_t off, uint64_t len);

/* The contents of the range are of no interest any more: what gives space back is zeroed. */
void layers_discard(struct layers *l, uint64_t off, uint64_t len);

/*
 * Everything that was written is with the host's storage. After a failure the layer that it was of
 * counts as not flushed: the next flush asks the host again, whatever that says then.
 */
__must_check int layers_flush(struct layers *l);

/*
 * Makes sure that the next layers_push() finds a free entry, and may leave what there is below the
 * top. That costs copying when LAYERS_MAX are in use, or LAYERS_BELOW would be passed. `running`:
 * the disk may be written to until then, so that a top that is unused now may not be replaced; and
 * whoever uses it waits, so that at most LAYERS_ROOM_CLUSTERS are copied. -EAGAIN: that would not
 * do; layers_flatten() is to go on first.
 */
__must_check int layers_make_room(struct layers *l, bool running);

/* Nothing of the disk is in the top: it may stay the top, with whatever is forked off now. */
static inline bool layers_top_unused(const struct layers *l)
{
	return l->layer[l->top].held == 0;
}

/*
 * The top becomes read-only; `top` is the new one. An unused top is simply replaced. The
 * descriptors are taken over on success; on failure nothing has changed. -EAGAIN: so much was
 * written since layers_make_room() that more than LAYERS_BELOW would be below it.
 */
__must_check int layers_push(struct layers *l, struct layer_fds top);

/* In a forked child, before any write: the top, which is empty, was the parent's. */
__must_check int layers_replace_top(struct layers *l, struct layer_fds top);

/*
 * There are too many layers, or they take up too much; that soon forks could fail for it; and some
 * more of the work: 1 more is to be done, 0 done, or -errno.
 */
bool layers_wants_flatten(const struct layers *l);
bool layers_urgent(const struct layers *l);
__must_check int layers_flatten(struct layers *l, unsigned int max_clusters);

/* Bytes of storage that the top takes up, or -errno. */
int64_t layers_top_bytes(const struct layers *l);
