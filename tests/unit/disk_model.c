/* SPDX-License-Identifier: Apache-2.0 */
/* See disk_model.h. */
#define _GNU_SOURCE
#include "unit.h"

#include "disk_model.h"
#include "lib/layerfile.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const char *disk_model_dir = "/tmp";

struct layer_fds disk_model_layer(void)
{
	struct layer_fds f = {-1, -1};

	assert_int_equal(layerfile_make(disk_model_dir, &f.rw, &f.ro), 0);
	return f;
}

static uint8_t *plain(uint64_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

void disk_model_init(struct disk_model *d, uint64_t size)
{
	assert_int_equal(layers_init(&d->l, size, disk_model_layer()), 0);
	d->want = plain(size);
}

void disk_model_free(struct disk_model *d)
{
	munmap(d->want, d->l.size);
	layers_free(&d->l);
}

/* Cuts memory into pieces of growing odd sizes. */
static int cut(struct iovec *v, int max, uint8_t *p, size_t len)
{
	size_t part = 100;
	int n = 0;

	while (len) {
		if (part > len || n == max - 1)
			part = len;
		v[n++] = (struct iovec){p, part};
		p += part;
		len -= part;
		part = part * 3 + 1;
	}
	return n;
}

int disk_model_write(struct disk_model *d, uint64_t off, uint32_t len, uint32_t seed)
{
	uint8_t *data = malloc(len);
	struct iovec v[16];
	int rc;

	for (uint32_t i = 0; i < len; i++)
		data[i] = (uint8_t)((seed + i) * 2654435761u >> 11 | 1);
	rc = layers_write(&d->l, off, v, cut(v, 16, data, len));
	if (rc == 0)
		memcpy(d->want + off, data, len);
	free(data);
	return rc;
}

void disk_model_zero(struct disk_model *d, uint64_t off, uint64_t len)
{
	assert_int_equal(layers_zero(&d->l, off, len), 0);
	memset(d->want + off, 0, len);
}

/* Parts of clusters may keep what they had: the model takes over what the disk says. */
static void settle_part(struct disk_model *d, uint64_t off, uint64_t len)
{
	uint8_t *got = malloc(len + 1);
	struct iovec v = {got, len};

	assert_int_equal(layers_read(&d->l, off, &v, 1), 0);
	for (uint64_t i = 0; i < len; i++)
		assert_true(got[i] == 0 || got[i] == d->want[off + i]);
	memcpy(d->want + off, got, len);
	free(got);
}

void disk_model_discard(struct disk_model *d, uint64_t off, uint64_t len)
{
	uint64_t end = off + len, c = LAYERS_CLUSTER;
	uint64_t first = (off + c - 1) / c * c, last = end / c * c;

	layers_discard(&d->l, off, len);
	if (first >= last) {
		settle_part(d, off, len);
		return;
	}
	settle_part(d, off, first - off);
	memset(d->want + first, 0, last - first);
	settle_part(d, last, end - last);
}

static void check_invariants(const struct layers *l)
{
	uint32_t held[LAYERS_MAX] = {0}, used = 0, stored = 0;
	unsigned int count = 0;

	for (uint32_t c = 0; c < l->clusters; c++) {
		if (!l->map[c])
			continue;
		assert_true(l->map[c] <= LAYERS_MAX);
		held[l->map[c] - 1]++;
		used++;
	}
	assert_int_equal(used, l->used);
	for (unsigned int i = 0; i < LAYERS_MAX; i++) {
		assert_int_equal(held[i], l->layer[i].held);
		assert_in_range(l->layer[i].stored, held[i], l->clusters);
		stored += l->layer[i].stored;
		if (l->layer[i].fd >= 0) {
			count++;
			assert_true(held[i] || i == l->top);
			assert_int_equal(fcntl(l->layer[i].fd, F_GETFL) & O_ACCMODE, O_RDONLY);
		} else {
			assert_int_equal(held[i], 0);
		}
	}
	assert_int_equal(count, l->count);
	assert_int_equal(stored, l->stored);
	assert_in_range(stored - l->layer[l->top].stored, 0, LAYERS_BELOW * l->clusters);
	assert_true(l->layer[l->top].fd >= 0 && l->top_rw >= 0);
	assert_true(l->victim == LAYERS_MAX || (l->victim != l->top && held[l->victim]));
}

void disk_model_check(struct disk_model *d, uint64_t off, uint64_t len)
{
	uint8_t *got = malloc(len);
	struct iovec v[16];

	memset(got, 0xee, len);
	assert_int_equal(layers_read(&d->l, off, v, cut(v, 16, got, len)), 0);
	if (memcmp(got, d->want + off, len) != 0)
		for (uint64_t i = 0; i < len; i++)
			if (got[i] != d->want[off + i])
				fail_msg("byte %llu is %#x, not %#x", (unsigned long long)(off + i),
					 got[i], d->want[off + i]);
	free(got);
}

void disk_model_check_all(struct disk_model *d)
{
	check_invariants(&d->l);
	for (uint64_t off = 0; off < d->l.size; off += 16 * LAYERS_CLUSTER) {
		uint64_t left = d->l.size - off;

		disk_model_check(d, off, left < 16 * LAYERS_CLUSTER ? left : 16 * LAYERS_CLUSTER);
	}
}

void disk_model_fork(struct disk_model *parent, struct disk_model *child)
{
	struct layers *p = &parent->l, *c = &child->l;
	size_t mem = 2 * (size_t)LAYERS_CLUSTER + p->clusters;

	assert_int_equal(layers_make_room(p, false), 0);
	assert_int_equal(layers_push(p, disk_model_layer()), 0);
	*c = *p;
	c->bounce = plain(mem);
	memcpy(c->bounce, p->bounce, mem);
	c->zeros = c->bounce + LAYERS_CLUSTER;
	c->map = c->zeros + LAYERS_CLUSTER;
	for (unsigned int i = 0; i < LAYERS_MAX; i++)
		if (p->layer[i].fd >= 0)
			c->layer[i].fd = dup(p->layer[i].fd);
	c->top_rw = dup(p->top_rw);
	assert_int_equal(layers_replace_top(c, disk_model_layer()), 0);
	child->want = plain(p->size);
	memcpy(child->want, parent->want, p->size);
}
