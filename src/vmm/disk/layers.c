/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Map and files of a layered disk. Invariants, at every return:
 * - layer[i].held is the number of map entries i + 1; a layer with none is closed,
 *   unless it is the top.
 * - A cluster of the top's file that the map does not give to the top is a hole,
 *   unless top_stale is set. So a write into part of an unused cluster need not
 *   write the zeros around it.
 * - layer[i].stored is at least the number of clusters that the layer's file has
 *   storage for, at least held, and at most the disk's; it changes for the top only.
 * - Below the top it is LAYERS_BELOW times the disk's clusters at most, all together:
 *   only layers_push() adds there.
 *
 * Thread: under the owner's lock. Fork: see layers.h.
 */
#define _GNU_SOURCE
#include "vmm/disk/layers.h"
#include "vmm/disk/layer_file.h"
#include "vmm/disk/layers_impl.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define CLUSTER_MASK ((uint64_t)LAYERS_CLUSTER - 1)

static uint32_t cluster_of(uint64_t off)
{
	return (uint32_t)(off / LAYERS_CLUSTER);
}

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* A free entry of the table, or LAYERS_MAX. */
static unsigned int free_entry(const struct layers *l)
{
	unsigned int i = 0;

	while (i < LAYERS_MAX && l->layer[i].fd >= 0)
		i++;
	return i;
}

static void set_top(struct layers *l, unsigned int i, struct layer_fds top)
{
	l->layer[i] = (struct layer){.fd = top.ro};
	l->top = i;
	l->top_rw = top.rw;
	l->top_stale = false;
	l->count++;
}

static void close_layer(struct layers *l, unsigned int i)
{
	close_fd(&l->layer[i].fd);
	l->stored -= l->layer[i].stored;
	l->layer[i] = (struct layer){.fd = -1};
	l->count--;
	if (l->victim == i)
		l->victim = LAYERS_MAX;
}

int layers_init(struct layers *l, uint64_t size, struct layer_fds top)
{
	int rc = layer_file_check(top);
	uint8_t *mem;

	if (rc)
		return rc;
	if (size == 0 || size % LAYERS_CLUSTER || size > LAYERS_SIZE_MAX)
		return -EINVAL;
	*l = (struct layers){
		.size = size, .clusters = cluster_of(size), .top_rw = -1, .victim = LAYERS_MAX};
	for (unsigned int i = 0; i < LAYERS_MAX; i++)
		l->layer[i].fd = -1;
	/* One mapping for all; of the map only what describes used parts of the disk is touched. */
	mem = mmap(NULL, 2 * (size_t)LAYERS_CLUSTER + l->clusters, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		return -errno;
	l->bounce = mem;
	l->zeros = mem + LAYERS_CLUSTER;
	l->map = mem + 2 * (size_t)LAYERS_CLUSTER;
	set_top(l, 0, top);
	return 0;
}

void layers_free(struct layers *l)
{
	if (!l->bounce)
		return;
	for (unsigned int i = 0; i < LAYERS_MAX; i++)
		close_fd(&l->layer[i].fd);
	close_fd(&l->top_rw);
	munmap(l->bounce, 2 * (size_t)LAYERS_CLUSTER + l->clusters);
	*l = (struct layers){.top_rw = -1};
}

static bool in_top(const struct layers *l, uint32_t cluster)
{
	return l->map[cluster] == l->top + 1;
}

/* The top's file has one cluster more; or it is not known better. */
static void top_grows(struct layers *l)
{
	if (l->layer[l->top].stored == l->clusters)
		return;
	l->layer[l->top].stored++;
	l->stored++;
}

/* Takes a cluster away from whoever holds it. */
static void disown(struct layers *l, uint32_t cluster)
{
	unsigned int i = l->map[cluster] - 1u;

	if (!l->map[cluster])
		return;
	l->map[cluster] = 0;
	l->used--;
	if (--l->layer[i].held == 0 && i != l->top)
		close_layer(l, i);
}

void layers_claim(struct layers *l, uint64_t off, uint64_t end)
{
	l->layer[l->top].unsynced = true;
	for (uint32_t c = cluster_of(off); c <= cluster_of(end - 1); c++) {
		if (in_top(l, c))
			continue;
		disown(l, c);
		l->map[c] = (uint8_t)(l->top + 1);
		l->layer[l->top].held++;
		l->used++;
		top_grows(l);
	}
}

static bool punch_top(struct layers *l, uint64_t off, uint64_t end)
{
	bool done = layer_file_punch(l->top_rw, off, end - off) == 0;

	l->top_stale = l->top_stale || !done;
	return done;
}

void layers_unwrite(struct layers *l, uint64_t off, uint64_t end)
{
	for (uint32_t c = cluster_of(off); c <= cluster_of(end - 1); c++)
		if (!in_top(l, c) && !punch_top(l, layers_offset(c), layers_offset(c + 1)))
			top_grows(l);
}

int layers_read(const struct layers *l, uint64_t off, struct iovec *iov, int n)
{
	struct layer_iov at = {iov, n};
	uint64_t end = off + layer_iov_bytes(&at);

	while (off < end) {
		uint32_t c = cluster_of(off);
		uint8_t holder = l->map[c];
		uint64_t stop;
		int rc = 0;

		/* As far as the same layer goes on. */
		while (++c < l->clusters && layers_offset(c) < end && l->map[c] == holder)
			;
		stop = min64(end, layers_offset(c));
		if (holder)
			rc = layer_file_read(l->layer[holder - 1].fd, &at, stop - off, off);
		else
			layer_iov_zero(&at, stop - off);
		if (rc)
			return rc;
		off = stop;
	}
	return 0;
}

/* [from, to) of one cluster, from where it is now into the top. */
static int copy_up(struct layers *l, uint64_t from, uint64_t to)
{
	struct iovec v = {l->bounce, to - from};
	uint8_t holder;
	int rc;

	if (from == to)
		return 0; /* maybe at the end of the disk, where the map ends, too */
	holder = l->map[cluster_of(from)];
	if (!holder && !l->top_stale)
		return 0; /* a hole already */
	l->copied_up += to - from;
	if (holder) {
		l->copied_up += to - from;
		rc = layer_file_read(l->layer[holder - 1].fd, &(struct layer_iov){&v, 1}, to - from,
				     from);
		if (rc)
			return rc;
	}
	v = (struct iovec){holder ? l->bounce : l->zeros, to - from};
	return layer_file_write(l->top_rw, &(struct layer_iov){&v, 1}, to - from, from);
}

/* How far from `off` on a write needs nothing copied up: `off` if not at all. */
static uint64_t plain_until(const struct layers *l, uint64_t off, uint64_t end)
{
	while (off < end) {
		uint64_t next = layers_offset(cluster_of(off) + 1);
		bool whole = (off & CLUSTER_MASK) == 0 && next <= end;

		if (!whole && !in_top(l, cluster_of(off)))
			break;
		off = min64(end, next);
	}
	return off;
}

int layers_write(struct layers *l, uint64_t off, struct iovec *iov, int n)
{
	struct layer_iov at = {iov, n};
	uint64_t end = off + layer_iov_bytes(&at);

	while (off < end) {
		uint64_t stop = plain_until(l, off, end);
		int rc = 0;

		if (stop == off) {
			uint64_t first = off & ~CLUSTER_MASK, next = first + LAYERS_CLUSTER;

			stop = min64(end, next);
			rc = copy_up(l, first, off);
			if (rc == 0)
				rc = copy_up(l, stop, next);
		}
		if (rc == 0)
			rc = layer_file_write(l->top_rw, &at, stop - off, off);
		if (rc) {
			layers_unwrite(l, off, stop);
			return rc;
		}
		layers_claim(l, off, stop);
		off = stop;
	}
	return 0;
}

void layers_drop(struct layers *l, uint32_t first, uint32_t end)
{
	uint32_t tops = 0;

	if (first >= end)
		return;
	for (uint32_t c = first; c < end; c++) {
		tops += in_top(l, c);
		disown(l, c);
	}
	if ((tops || l->top_stale) && punch_top(l, layers_offset(first), layers_offset(end))) {
		l->layer[l->top].stored -= tops;
		l->stored -= tops;
	}
}

/* Part of one cluster. */
static int zero_part(struct layers *l, uint64_t off, uint64_t end)
{
	struct iovec v = {l->zeros, end - off};

	if (off >= end || !l->map[cluster_of(off)])
		return 0;
	if (in_top(l, cluster_of(off)) && layer_file_punch(l->top_rw, off, end - off) == 0) {
		l->layer[l->top].unsynced = true;
		return 0;
	}
	return layers_write(l, off, &v, 1);
}

int layers_zero(struct layers *l, uint64_t off, uint64_t len)
{
	uint64_t end = off + len;
	/* The whole clusters inside; head and tail are what is left beside them. */
	uint64_t first = (off + CLUSTER_MASK) & ~CLUSTER_MASK, last = end & ~CLUSTER_MASK;
	int rc;

	if (first > last)
		return zero_part(l, off, end);
	layers_drop(l, cluster_of(first), cluster_of(last));
	rc = zero_part(l, off, first);
	return rc ? rc : zero_part(l, last, end);
}

void layers_discard(struct layers *l, uint64_t off, uint64_t len)
{
	uint64_t end = off + len;
	uint64_t first = (off + CLUSTER_MASK) & ~CLUSTER_MASK, last = end & ~CLUSTER_MASK;

	/* Parts are punched where that gives space back; a failure leaves what was there. */
	if (first > last) {
		if (in_top(l, cluster_of(off)))
			(void)!layer_file_punch(l->top_rw, off, len);
		return;
	}
	layers_drop(l, cluster_of(first), cluster_of(last));
	if (off < first && in_top(l, cluster_of(off)))
		(void)!layer_file_punch(l->top_rw, off, first - off);
	if (last < end && in_top(l, cluster_of(last)))
		(void)!layer_file_punch(l->top_rw, last, end - last);
}

int layers_flush(struct layers *l)
{
	for (unsigned int i = 0; i < LAYERS_MAX; i++) {
		int rc;

		if (l->layer[i].fd < 0 || !l->layer[i].unsynced)
			continue;
		rc = layer_file_sync(l->layer[i].fd);
		if (rc)
			return rc;
		l->layer[i].unsynced = false;
	}
	return 0;
}

int layers_push(struct layers *l, struct layer_fds top)
{
	unsigned int old = l->top, i;
	int rc = layer_file_check(top);

	if (rc)
		return rc;
	if (l->layer[old].held == 0)
		return layers_replace_top(l, top);
	if (layers_too_much_below(l))
		return -EAGAIN;
	i = free_entry(l);
	if (i == LAYERS_MAX)
		return -EMLINK;
	/* From here on nobody can write to it: the children get the other descriptor only. */
	close_fd(&l->top_rw);
	set_top(l, i, top);
	return 0;
}

int layers_replace_top(struct layers *l, struct layer_fds top)
{
	unsigned int i = l->top;
	int rc = layer_file_check(top);

	if (rc)
		return rc;
	if (l->layer[i].held)
		return -EBUSY;
	close_layer(l, i);
	close_fd(&l->top_rw);
	set_top(l, i, top);
	return 0;
}

int64_t layers_top_bytes(const struct layers *l)
{
	return layer_file_bytes(l->layer[l->top].fd);
}
