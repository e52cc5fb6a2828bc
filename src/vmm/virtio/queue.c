/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walk of a split virtqueue (virtio 1.2, section 2.7) with every value from
 * the guest fetched once and checked before use. Invariants while ready: size
 * is a power of two <= max; desc, avail and used are host addresses of areas
 * that lie wholly inside guest RAM; no register changes them until reset.
 * A chain has at most `size` steps, so a loop in it ends with -EPROTO.
 *
 * Thread: under the device lock; the other side is the guest, on any vCPU.
 * Fork: plain memory, nothing to do.
 */
#define _GNU_SOURCE
#include "vmm/virtio/queue.h"

#include "vmm/virtio/virtio_spec.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

void virtq_init(struct virtq *q, const struct gmem *mem, uint16_t max)
{
	*q = (struct virtq){.mem = mem, .max = max};
}

void virtq_reset(struct virtq *q)
{
	virtq_init(q, q->mem, q->max);
}

static void *area(const struct virtq *q, uint64_t gpa, uint64_t len, unsigned align)
{
	return gpa % align ? NULL : gmem_slice(q->mem, gpa, len);
}

int virtq_enable(struct virtq *q)
{
	uint16_t n = q->size;

	if (n == 0 || n > q->max || (n & (n - 1)))
		return -EPROTO;
	q->desc = area(q, q->desc_gpa, VIRTQ_DESC_BYTES(n), VIRTQ_DESC_ALIGN);
	q->avail = area(q, q->avail_gpa, VIRTQ_AVAIL_BYTES(n), VIRTQ_AVAIL_ALIGN);
	q->used = area(q, q->used_gpa, VIRTQ_USED_BYTES(n), VIRTQ_USED_ALIGN);
	if (!q->desc || !q->avail || !q->used)
		return -EPROTO;
	q->next_avail = q->next_used = 0;
	q->ready = true;
	return 0;
}

/* Acquire costs nothing on x86 and pairs with the driver's write barrier before avail.idx. */
static uint16_t load16(const uint16_t *p)
{
	return le16toh(__atomic_load_n(p, __ATOMIC_ACQUIRE));
}

/* One descriptor of the chain, copied: adds its segment to ch or refuses it. */
static int add_segment(const struct virtq *q, struct virtq_chain *ch, uint64_t addr, uint32_t len,
		       bool writable)
{
	uint32_t *total = writable ? &ch->in_len : &ch->out_len;
	void *p = gmem_slice(q->mem, addr, len);

	/* 2.7.4.2: the device-readable descriptors come before the writable ones. */
	if (!p || len == 0 || (!writable && ch->n_in))
		return -EPROTO;
	if (len > VIRTQ_CHAIN_BYTES_MAX - *total)
		return -EPROTO;
	*total += len;
	ch->iov[ch->n_out + ch->n_in] = (struct iovec){.iov_base = p, .iov_len = len};
	if (writable)
		ch->n_in++;
	else
		ch->n_out++;
	return 0;
}

int virtq_peek(struct virtq *q, struct virtq_chain *ch)
{
	uint16_t idx, filled;

	if (!q->ready)
		return 0;
	filled = (uint16_t)(load16(&q->avail[1]) - q->next_avail);
	if (filled == 0)
		return 0;
	if (filled > q->size)
		return -EPROTO;
	idx = load16(&q->avail[2 + (q->next_avail & (q->size - 1))]);
	ch->head = idx;
	ch->n_out = ch->n_in = 0;
	ch->out_len = ch->in_len = 0;
	for (unsigned step = 0; step < q->size; step++) {
		uint64_t addr, word;
		uint16_t flags;

		if (idx >= q->size)
			return -EPROTO;
		/* Two whole-word loads: the compiler may not fetch a field again later. */
		addr = le64toh(__atomic_load_n(&q->desc[(size_t)2 * idx], __ATOMIC_RELAXED));
		word = le64toh(__atomic_load_n(&q->desc[(size_t)2 * idx + 1], __ATOMIC_RELAXED));
		flags = (uint16_t)(word >> 32);
		if ((flags & VIRTQ_DESC_F_INDIRECT) ||
		    add_segment(q, ch, addr, (uint32_t)word, flags & VIRTQ_DESC_F_WRITE))
			return -EPROTO;
		if (!(flags & VIRTQ_DESC_F_NEXT))
			return 1;
		idx = (uint16_t)(word >> 48);
	}
	return -EPROTO;
}

static void give_back(struct virtq *q, uint16_t head, uint32_t len)
{
	uint8_t *elem = q->used + 4 + (size_t)8 * (q->next_used & (q->size - 1));
	uint32_t pair[2] = {htole32(head), htole32(len)};

	memcpy(elem, pair, sizeof(pair));
	q->next_used++;
	/* Release pairs with the driver's read barrier after it has seen the index. */
	__atomic_store_n((uint16_t *)(void *)(q->used + 2), htole16(q->next_used),
			 __ATOMIC_RELEASE);
	q->used_moved = true;
}

void virtq_complete(struct virtq *q, const struct virtq_chain *ch, uint32_t len)
{
	virtq_return(q);
	q->next_avail++;
	give_back(q, ch->head, len);
}

void virtq_keep(struct virtq *q)
{
	q->next_avail++;
}

/* What a guest has changed in its ring meanwhile comes back to it, and to nobody else. */
void virtq_return(struct virtq *q)
{
	while (virtq_kept(q))
		give_back(q, load16(&q->avail[2 + (q->next_used & (q->size - 1))]), 0);
}

bool virtq_take_irq(struct virtq *q)
{
	if (!q->used_moved)
		return false;
	q->used_moved = false;
	/* The index must be visible before the flag is read, or both sides sleep (2.7.7.1). */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return !(load16(&q->avail[0]) & VIRTQ_AVAIL_F_NO_INTERRUPT);
}

/* Steps through the segments that make up [skip, skip + left) of one part of a chain. */
struct walk {
	const struct iovec *seg;
	size_t skip, left;
};

static struct walk walk_start(const struct virtq_chain *ch, bool writable, uint32_t off,
			      uint32_t len)
{
	return (struct walk){ch->iov + (writable ? ch->n_out : 0), off, len};
}

static bool walk_next(struct walk *w, struct iovec *part)
{
	if (!w->left)
		return false;
	for (; w->skip >= w->seg->iov_len; w->seg++)
		w->skip -= w->seg->iov_len;
	part->iov_base = (uint8_t *)w->seg->iov_base + w->skip;
	part->iov_len = w->seg->iov_len - w->skip;
	if (part->iov_len > w->left)
		part->iov_len = w->left;
	w->skip += part->iov_len;
	w->left -= part->iov_len;
	return true;
}

int virtq_slice(const struct virtq_chain *ch, bool writable, uint32_t off, uint32_t len,
		struct iovec out[VIRTQ_SIZE_MAX])
{
	struct walk w = walk_start(ch, writable, off, len);
	int n = 0;

	while (walk_next(&w, &out[n]))
		n++;
	return n;
}

void virtq_read(const struct virtq_chain *ch, uint32_t off, void *dst, uint32_t len)
{
	struct walk w = walk_start(ch, false, off, len);
	struct iovec part;

	for (uint8_t *p = dst; walk_next(&w, &part); p += part.iov_len)
		memcpy(p, part.iov_base, part.iov_len);
	/* The compiler may not fetch what was copied from the guest a second time. */
	__asm__ volatile("" ::: "memory");
}

void virtq_write(const struct virtq_chain *ch, uint32_t off, const void *src, uint32_t len)
{
	struct walk w = walk_start(ch, true, off, len);
	struct iovec part;

	for (const uint8_t *p = src; walk_next(&w, &part); p += part.iov_len)
		memcpy(part.iov_base, p, part.iov_len);
}

void virtq_save(const struct virtq *q, struct bytes_out *o)
{
	bytes_put(o, q->size, 2);
	bytes_put(o, q->ready, 1);
	bytes_put(o, q->desc_gpa, 8);
	bytes_put(o, q->avail_gpa, 8);
	bytes_put(o, q->used_gpa, 8);
	bytes_put(o, q->next_avail, 2);
	bytes_put(o, q->next_used, 2);
}

int virtq_load(struct virtq *q, struct bytes_in *in)
{
	uint8_t ready;

	q->size = bytes_get16(in);
	ready = bytes_get8(in);
	q->desc_gpa = bytes_get(in, 8);
	q->avail_gpa = bytes_get(in, 8);
	q->used_gpa = bytes_get(in, 8);
	if (ready > 1 || (ready && virtq_enable(q)))
		return -EPROTO;
	q->next_avail = bytes_get16(in);
	q->next_used = bytes_get16(in);
	return in->bad || virtq_kept(q) > (ready ? q->size : 0) ? -EPROTO : 0;
}
