/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hot sets. A bitmap has one bit for each page of gmem, so KVM's logs of the
 * two memory slots lie behind each other in it: both slots are whole multiples
 * of 64 pages.
 */
#define _GNU_SOURCE
#include "vmm/core/hotset.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE      4096ull
#define WORD_BITS 64u

static_assert(GMEM_ALIGN % (WORD_BITS * PAGE) == 0, "slots begin at a word of the bitmap");

static size_t bitmaps_size(const struct hotsets *h)
{
	return CTL_HOTSETS * h->words * sizeof(h->bits[0]);
}

static uint64_t *bitmap(const struct hotsets *h, enum ctl_hotset set)
{
	return h->bits + (size_t)set * h->words;
}

static void hotset_free(struct hotset *s)
{
	free(s->run);
	*s = (struct hotset){0};
}

void hotsets_end(struct hotsets *h)
{
	if (h->bits)
		munmap(h->bits, bitmaps_size(h));
	h->bits = NULL;
}

int hotsets_begin(struct hotsets *h, const struct gmem *ram, struct err *err)
{
	void *p;

	hotsets_end(h);
	for (size_t i = 0; i < CTL_HOTSETS; i++)
		hotset_free(&h->set[i]);
	h->words = ram->size / PAGE / WORD_BITS;
	p = mmap(NULL, bitmaps_size(h), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return err_set(err, errno, "cannot map the bitmap of hot pages");
	h->bits = p;
	return 0;
}

int hotsets_record(struct hotsets *h, const struct gmem *ram, const struct kvm_vm *vm,
		   enum ctl_hotset set, struct err *err)
{
	size_t low = gmem_low_size(ram) / PAGE / WORD_BITS;
	int rc;

	if (!h->bits)
		return err_text(err, EINVAL, "this machine does not log what the guest writes");
	rc = kvm_vm_dirty_log(vm, VM_SLOT_LOW, bitmap(h, set));
	if (rc == 0 && low < h->words)
		rc = kvm_vm_dirty_log(vm, VM_SLOT_HIGH, bitmap(h, set) + low);
	return rc < 0 ? err_set(err, -rc, "cannot read the log of written pages") : 0;
}

static bool bit(const uint64_t *bits, uint32_t i)
{
	return bits[i / WORD_BITS] >> i % WORD_BITS & 1;
}

/* Writes the runs to s->run if there is memory for them, and counts both in any case. */
static void hotset_scan(struct hotset *s, const uint64_t *bits, uint32_t pages)
{
	struct hot_run *last = NULL;

	s->nruns = s->pages = 0;
	for (uint32_t i = 0; i < pages && s->pages < HOTSET_MAX_PAGES; i++) {
		if (i % WORD_BITS == 0 && bits[i / WORD_BITS] == 0) {
			i += WORD_BITS - 1;
			continue;
		}
		if (!bit(bits, i))
			continue;
		s->pages++;
		if (i > 0 && s->nruns && bit(bits, i - 1)) {
			if (last)
				last->count++;
			continue;
		}
		if (s->run) {
			last = &s->run[s->nruns];
			*last = (struct hot_run){i, 1};
		}
		s->nruns++;
	}
}

/*
 * What was recorded becomes this process's alone: a copy that its guest has taken over may still be
 * there, and write.
 */
static int hotsets_take(struct hotsets *h)
{
	size_t size = bitmaps_size(h);
	void *own = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (own == MAP_FAILED)
		return -errno;
	memcpy(own, h->bits, size);
	munmap(h->bits, size);
	h->bits = own;
	return 0;
}

int hotsets_learn(struct hotsets *h, struct err *err)
{
	uint32_t pages = (uint32_t)(h->words * WORD_BITS);

	if (!h->bits)
		return err_text(err, EINVAL, "no rehearsal was begun");
	if (hotsets_take(h) < 0)
		return err_set(err, ENOMEM, "hot pages");
	/* What an earlier moment has written is the copy's own already. */
	for (size_t i = 1; i < CTL_HOTSETS; i++)
		for (size_t w = 0; w < h->words; w++)
			bitmap(h, (enum ctl_hotset)i)[w] &= ~bitmap(h, (enum ctl_hotset)(i - 1))[w];
	for (size_t i = 0; i < CTL_HOTSETS; i++) {
		struct hotset *s = &h->set[i];

		hotset_scan(s, bitmap(h, (enum ctl_hotset)i), pages);
		s->run = calloc(s->nruns + 1, sizeof(s->run[0]));
		if (!s->run) {
			*s = (struct hotset){0};
			return err_set(err, ENOMEM, "hot pages");
		}
		hotset_scan(s, bitmap(h, (enum ctl_hotset)i), pages);
	}
	hotsets_end(h);
	return 0;
}

void hotsets_populate(const struct hotsets *h, const struct gmem *ram, enum ctl_hotset set)
{
	const struct hotset *s = &h->set[set];

	for (uint32_t i = 0; i < s->nruns; i++)
		if (madvise(ram->base + s->run[i].page * PAGE, s->run[i].count * PAGE,
			    MADV_POPULATE_WRITE) < 0)
			return;
}

/* The run at *at and those close behind it; *at: the next one. */
static struct hot_run hotset_piece(const struct hotset *s, uint32_t *at)
{
	struct hot_run piece = s->run[*at];

	while (++*at < s->nruns && s->run[*at].page - (piece.page + piece.count) <= HOTSET_GAP)
		piece.count = s->run[*at].page + s->run[*at].count - piece.page;
	return piece;
}

/* False: it is no use to go on. A signal alone does not say so. */
static bool hotset_map_piece(const struct gmem *ram, int vcpu_fd, uint64_t begin, uint64_t end)
{
	int rc = kvm_vcpu_map(vcpu_fd, gmem_gpa(ram, begin), end - begin);

	return rc == 0 || rc == -EINTR;
}

void hotsets_map(const struct hotsets *h, const struct gmem *ram, int vcpu_fd, enum ctl_hotset set,
		 const _Atomic int *stop)
{
	const struct hotset *s = &h->set[set];
	uint64_t low = gmem_low_size(ram);
	bool ok = true;

	for (uint32_t i = 0; ok && i < s->nruns && !atomic_load(stop);) {
		struct hot_run piece = hotset_piece(s, &i);
		uint64_t begin = piece.page * PAGE, end = begin + piece.count * PAGE;

		/* For the guest the gap may be in the middle of it. */
		if (begin < low && end > low) {
			ok = hotset_map_piece(ram, vcpu_fd, begin, low);
			begin = low;
		}
		ok = ok && hotset_map_piece(ram, vcpu_fd, begin, end);
	}
}
