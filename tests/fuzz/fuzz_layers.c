/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contents of forked disks. The input is a script: transfers, zeroing and discarding of any
 * range of a few disks that are forked from each other, thinning out, and a host whose storage
 * fails at a moment that the script says. Beside each disk is plain memory that says what it must
 * contain; where something has failed, the old bytes or the new ones, and nothing else.
 */
#define _GNU_SOURCE
#include "fake_storage.h"
#include "input.h"
#include "vmm/disk/layer_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#define CLUSTERS 40u /* more than layers, of which each needs one */
#define DISK     ((size_t)CLUSTERS * LAYERS_CLUSTER)
#define DISKS    3u
#define STEPS    100u

struct disk {
	struct layers l;
	bool there;
	uint8_t *want;         /* DISK bytes */
	bool marked[CLUSTERS]; /* `want` has something else than zeros there, maybe */
};

static const uint8_t zeros[LAYERS_CLUSTER];

static void read_all(const struct disk *d, uint64_t off, uint8_t *got, size_t len)
{
	unsigned bad = fake_storage.bad;
	struct iovec v = {got, len};

	fake_storage.bad = 0;
	MUST(layers_read(&d->l, off, &v, 1) == 0);
	fake_storage.bad = bad;
}

/* Where neither the disk nor the model has anything (most of it), nothing need be compared. */
UNGUIDED static void look(const struct disk *d)
{
	static uint8_t got[LAYERS_CLUSTER];

	for (uint32_t c = 0; c < CLUSTERS; c++) {
		size_t off = c * (size_t)LAYERS_CLUSTER;

		if (!d->l.map[c] && !d->marked[c])
			continue;
		read_all(d, off, got, LAYERS_CLUSTER);
		MUST(memcmp(got, d->marked[c] ? d->want + off : zeros, LAYERS_CLUSTER) == 0);
	}
}

/* A model of zeros. */
UNGUIDED static void forget(struct disk *d)
{
	for (uint32_t c = 0; c < CLUSTERS; c++)
		if (d->marked[c])
			memset(d->want + c * (size_t)LAYERS_CLUSTER, 0, LAYERS_CLUSTER);
	memset(d->marked, 0, sizeof(d->marked));
}

/* Each byte is the old or the new one. Most are all of one kind: a glance at the sector does. */
UNGUIDED static void either(const uint8_t *got, const uint8_t *old, const uint8_t *new, size_t len)
{
	for (size_t at = 0; at < len; at += 512) {
		if (memcmp(got + at, new + at, 512) == 0 || memcmp(got + at, old + at, 512) == 0)
			continue;
		for (size_t i = at; i < at + 512; i++)
			MUST(got[i] == old[i] || got[i] == new[i]);
	}
}

/*
 * The range is new: data, or zeros. If that is not certain, each byte is the old or the new one,
 * and stays what it is.
 */
static void changed(struct disk *d, uint64_t off, size_t len, const uint8_t *data, bool certain)
{
	static uint8_t got[DISK];
	static const uint8_t none[DISK];

	if (!certain) {
		read_all(d, off, got, len);
		either(got, d->want + off, data ? data : none, len);
		data = got;
	}
	memcpy(d->want + off, data ? data : none, len);
	for (size_t c = off / LAYERS_CLUSTER; data && c <= (off + len - 1) / LAYERS_CLUSTER; c++)
		d->marked[c] = true;
}

/* A buffer in up to four pieces. */
static int cut(struct iovec v[4], uint8_t *p, size_t len, uint8_t how)
{
	int n = 0;

	for (; n < 3 && how & 1u << n; n++) {
		size_t part = len / 3 + (size_t)n;

		v[n] = (struct iovec){p, part};
		p += part;
		len -= part;
	}
	v[n++] = (struct iovec){p, len};
	return n;
}

static void transfer(struct disk *d, struct input *in)
{
	static uint8_t buf[DISK], copy[DISK];
	uint8_t op = input_u8(in), how = input_u8(in);
	uint64_t off = input_int(in, 2) % (DISK / 512) * 512;
	size_t len = (size_t)(1 + input_int(in, 2) % 400) * 512;
	struct iovec v[4];
	int rc;

	len = len < DISK - off ? len : DISK - off;
	if (how & 0x80) { /* whole clusters have rules of their own */
		off -= off % LAYERS_CLUSTER;
		len = len < LAYERS_CLUSTER ? LAYERS_CLUSTER : len - len % LAYERS_CLUSTER;
	}
	switch (op % 5) {
	case 0:
		rc = layers_read(&d->l, off, v, cut(v, buf, len, how));
		MUST(rc == 0 || fake_storage.failures);
		if (rc == 0)
			MUST(memcmp(buf, d->want + off, len) == 0);
		break;
	case 1:
	case 2:
		for (size_t i = 0; i < len; i += 512)
			memset(copy + i, 0x80 | (how + (int)(i / 512 * 7)), 512);
		memcpy(buf, copy, len);
		rc = layers_write(&d->l, off, v, cut(v, buf, len, how));
		MUST(rc == 0 || fake_storage.failures);
		changed(d, off, len, copy, rc == 0);
		break;
	case 3:
		rc = layers_zero(&d->l, off, len);
		MUST(rc == 0 || fake_storage.failures);
		changed(d, off, len, NULL, rc == 0);
		break;
	default:
		layers_discard(&d->l, off, len);
		changed(d, off, len, NULL, false);
		break;
	}
}

/* Both get new tops, as by fork(2) of the process that has the parent. */
static void fork_disk(struct disk *parent, struct disk *child)
{
	struct layer_fds a = fake_storage_layer(), b = fake_storage_layer();
	uint8_t *mem;

	if (layers_make_room(&parent->l, false) < 0 || layers_push(&parent->l, a) < 0) {
		MUST(fake_storage.failures);
		fake_storage_drop(&a);
		fake_storage_drop(&b);
		return;
	}
	child->l = parent->l;
	mem = mmap(NULL, 2 * (size_t)LAYERS_CLUSTER + CLUSTERS, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(mem != MAP_FAILED);
	child->l.bounce = mem;
	child->l.zeros = mem + LAYERS_CLUSTER;
	child->l.map = mem + 2 * (size_t)LAYERS_CLUSTER;
	memcpy(child->l.map, parent->l.map, parent->l.clusters);
	for (unsigned i = 0; i < LAYERS_MAX; i++)
		if (parent->l.layer[i].fd >= 0)
			child->l.layer[i].fd = fcntl(parent->l.layer[i].fd, F_DUPFD_CLOEXEC, 0);
	child->l.top_rw = fcntl(parent->l.top_rw, F_DUPFD_CLOEXEC, 0);
	MUST(layers_replace_top(&child->l, b) == 0);
	forget(child);
	for (uint32_t c = 0; c < CLUSTERS; c++)
		if (parent->marked[c])
			memcpy(child->want + c * (size_t)LAYERS_CLUSTER,
			       parent->want + c * (size_t)LAYERS_CLUSTER, LAYERS_CLUSTER);
	memcpy(child->marked, parent->marked, sizeof(child->marked));
	child->there = true;
}

static void drop_disk(struct disk *d)
{
	if (d->there)
		layers_free(&d->l);
	d->there = false;
}

UNGUIDED static void check(const struct layers *l)
{
	uint32_t held[LAYERS_MAX] = {0}, used = 0, stored = 0;
	unsigned count = 0;

	for (uint32_t c = 0; c < l->clusters; c++)
		if (l->map[c]) {
			MUST(l->map[c] <= LAYERS_MAX);
			held[l->map[c] - 1]++;
			used++;
		}
	for (unsigned i = 0; i < LAYERS_MAX; i++) {
		MUST(l->layer[i].held == held[i]);
		MUST(l->layer[i].fd >= 0 ? held[i] || i == l->top : !held[i]);
		MUST(l->layer[i].stored >= held[i] && l->layer[i].stored <= l->clusters);
		/* What the host has given for it is not counted too low, whatever has failed. */
		MUST(l->layer[i].fd < 0 || layer_file_bytes(l->layer[i].fd) <=
						   (int64_t)l->layer[i].stored * LAYERS_CLUSTER);
		stored += l->layer[i].stored;
		count += l->layer[i].fd >= 0;
	}
	MUST(used == l->used && count == l->count && l->top_rw >= 0);
	MUST(stored == l->stored && stored - l->layer[l->top].stored <= LAYERS_BELOW * l->clusters);
}

/* Some tops, one after the other, each with something in it. */
static void pile_up(struct disk *d, uint8_t how, uint8_t seed)
{
	for (unsigned i = 0; i < how / 8u; i++) {
		uint64_t off = (i * 7 + seed) % CLUSTERS * (uint64_t)LAYERS_CLUSTER;
		struct layer_fds f = fake_storage_layer();
		uint8_t data[512], copy[512];
		struct iovec v = {data, sizeof(data)};
		int rc = layers_make_room(&d->l, how & 0x80);

		if (rc == 0)
			rc = layers_push(&d->l, f);
		if (rc < 0) {
			MUST(fake_storage.failures);
			fake_storage_drop(&f);
			break;
		}
		memset(data, seed, sizeof(data));
		memset(copy, seed, sizeof(copy));
		rc = layers_write(&d->l, off, &v, 1);
		MUST(rc == 0 || fake_storage.failures);
		changed(d, off, sizeof(copy), copy, rc == 0);
	}
}

static void step(struct disk *all, struct input *in)
{
	uint8_t op = input_u8(in);
	struct disk *d = &all[op >> 6 & 1], *other = &all[1 + op / 8 % 2];
	int rc;

	fake_storage.failures = 0;
	if (!d->there)
		d = &all[0];
	switch (op % 8) {
	case 0:
	case 1:
	case 2:
		transfer(d, in);
		break;
	case 3:
		if (other == d)
			other = &all[2];
		drop_disk(other);
		fork_disk(d, other);
		break;
	case 4:
		rc = layers_flatten(&d->l, op / 8);
		MUST(rc < 0 ? fake_storage.failures : (rc == 1) == layers_wants_flatten(&d->l));
		break;
	case 5:
		rc = layers_flush(&d->l);
		MUST(rc == 0 || fake_storage.failures);
		break;
	case 6:
		pile_up(d, op, input_u8(in) | 0x80);
		break;
	case 7:
		fake_storage.good = op / 16u;
		fake_storage.bad = 1 + input_u8(in) % 4;
		MUST(layers_top_bytes(&d->l) >= 0);
		break;
	}
	check(&d->l);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct disk all[DISKS];
	struct layer_fds wrong = fake_storage_layer();
	struct input in = {data, size};

	fake_storage = (struct fake_storage){0};
	for (unsigned i = 0; i < DISKS; i++) {
		all[i].there = false;
		if (!all[i].want)
			MUST((all[i].want = calloc(1, DISK)));
	}
	forget(&all[0]);
	/* Writable twice is not what a layer is. */
	MUST(layers_init(&all[0].l, DISK, (struct layer_fds){wrong.rw, wrong.rw}) == -EINVAL);
	fake_storage_drop(&wrong);
	MUST(layers_init(&all[0].l, DISK, fake_storage_layer()) == 0);
	all[0].there = true;
	for (unsigned i = 0; in.left && i < STEPS; i++) {
		step(all, &in);
		for (unsigned k = 0; i % 16 == 15 && k < DISKS; k++)
			if (all[k].there)
				look(&all[k]);
	}
	fake_storage.bad = 0;
	for (unsigned i = 0; i < DISKS; i++)
		if (all[i].there)
			look(&all[i]);
	for (unsigned i = 0; i < DISKS; i++)
		drop_disk(&all[i]);
	return 0;
}
