/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One split virtqueue by itself. The input is a script: addresses and size of the queue, bytes of
 * guest memory, and what a device does with the queue. A second walk of the same rings, written
 * from the text of the specification and in the plainest way, says what each step must give. What
 * virtq_peek() loads changes behind it (fetch.h), and it must give that all the same.
 */
#define _GNU_SOURCE
#include "fetch.h"
#include "ram.h"

#include "vmm/virtio/queue.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>

#define RAM  0x4000u
#define SIZE 16u

struct world {
	struct gmem mem;
	struct virtq q;
	struct virtq_chain ch;
	bool have;      /* ch is what virtq_peek() gave last, and memory is as it was then */
	unsigned nkept; /* chains that were taken and not given back */
};

static uint64_t peek_mem(const struct world *w, uint64_t at, unsigned n)
{
	uint64_t v = 0;

	MUST(at + n <= RAM);
	memcpy(&v, w->mem.base + at, n);
	return v;
}

/* The chain that is next, as 2.7.5 and 2.7.6 of the specification have it: as virtq_peek(). */
static int expect_chain(const struct world *w, struct virtq_chain *ch)
{
	const struct virtq *q = &w->q;
	uint16_t offered = (uint16_t)(peek_mem(w, q->avail_gpa + 2, 2) - q->next_avail);
	uint64_t i;

	memset(ch, 0, sizeof(*ch));
	if (!offered)
		return 0;
	i = peek_mem(w, q->avail_gpa + 4 + 2 * (q->next_avail % q->size), 2);
	ch->head = (uint16_t)i;
	for (unsigned n = 0; offered <= q->size && i < q->size && n < q->size; n++) {
		uint64_t at = q->desc_gpa + 16 * i, addr = peek_mem(w, at, 8);
		uint32_t len = (uint32_t)peek_mem(w, at + 8, 4);
		uint16_t flags = (uint16_t)peek_mem(w, at + 12, 2);
		bool in = flags & VIRTQ_DESC_F_WRITE;

		if (flags & VIRTQ_DESC_F_INDIRECT || !len || addr >= RAM || len > RAM - addr ||
		    (!in && ch->n_in))
			return -EPROTO;
		ch->iov[n] = (struct iovec){w->mem.base + addr, len};
		*(in ? &ch->n_in : &ch->n_out) += 1;
		*(in ? &ch->in_len : &ch->out_len) += len;
		if (!(flags & VIRTQ_DESC_F_NEXT))
			return 1;
		i = peek_mem(w, at + 14, 2);
	}
	return -EPROTO;
}

static void check_peek(struct world *w)
{
	static struct virtq_chain want;
	int rc = virtq_peek(&w->q, &w->ch);

	fetch_settle();
	w->have = rc == 1;
	if (!w->q.ready) {
		MUST(rc == 0);
		return;
	}
	MUST(rc == expect_chain(w, &want));
	if (rc != 1)
		return;
	MUST(w->ch.head == want.head && w->ch.n_in == want.n_in && w->ch.n_out == want.n_out);
	MUST(w->ch.in_len == want.in_len && w->ch.out_len == want.out_len);
	for (unsigned i = 0; i < want.n_in + want.n_out; i++)
		MUST(w->ch.iov[i].iov_base == want.iov[i].iov_base &&
		     w->ch.iov[i].iov_len == want.iov[i].iov_len);
}

/* Where byte `off` of one part of the chain lies. */
static uint8_t *byte_at(const struct virtq_chain *ch, bool writable, uint32_t off)
{
	const struct iovec *v = ch->iov + (writable ? ch->n_out : 0);

	for (; off >= v->iov_len; v++)
		off -= (uint32_t)v->iov_len;
	return (uint8_t *)v->iov_base + off;
}

/* A range of the chain, copied; or cut into segments. */
static void transfer(struct world *w, struct input *in)
{
	static uint8_t data[1024];
	static struct iovec seg[VIRTQ_SIZE_MAX];
	uint8_t how = input_u8(in);
	bool writable = how & 1;
	uint32_t all = writable ? w->ch.in_len : w->ch.out_len, off, len, sum = 0;
	int n;

	if (!w->have || !all)
		return;
	off = (uint32_t)input_int(in, 2) % all;
	len = (uint32_t)input_int(in, 2) % (all - off + 1);
	len = len < sizeof(data) ? len : sizeof(data);
	if (how & 2) {
		n = virtq_slice(&w->ch, writable, off, len, seg);
		for (int i = 0; i < n; i++) {
			MUST(seg[i].iov_len &&
			     seg[i].iov_base == byte_at(&w->ch, writable, off + sum));
			sum += (uint32_t)seg[i].iov_len;
		}
		MUST(sum == len);
	} else if (writable) {
		memset(data, how, sizeof(data));
		virtq_write(&w->ch, off, data, len);
		for (uint32_t i = 0; i < len; i++)
			MUST(*byte_at(&w->ch, true, off + i) == how);
		w->have = false; /* it may have been the rings */
	} else {
		virtq_read(&w->ch, off, data, len);
		for (uint32_t i = 0; i < len; i++)
			MUST(data[i] == *byte_at(&w->ch, false, off + i));
	}
}

/* Of the used ring: element `i` and the index behind it. */
static void check_used(const struct world *w, uint16_t i, uint16_t head, uint32_t len)
{
	uint64_t at = w->q.used_gpa + 4 + 8 * (uint64_t)(i % w->q.size);

	MUST(peek_mem(w, at, 4) == head && peek_mem(w, at + 4, 4) == len);
	MUST(peek_mem(w, w->q.used_gpa + 2, 2) == (uint16_t)(i + 1));
}

static void complete(struct world *w, uint32_t len)
{
	uint16_t used = (uint16_t)(w->q.next_used + virtq_kept(&w->q));

	if (!w->have)
		return;
	virtq_complete(&w->q, &w->ch, len);
	check_used(w, used, w->ch.head, len);
	MUST(virtq_kept(&w->q) == 0 && w->q.used_moved);
	w->nkept = 0;
	w->have = false;
}

static void keep(struct world *w)
{
	/* As many as there are places in the ring: a driver has no more to offer. */
	if (!w->have || virtq_kept(&w->q) == w->q.size)
		return;
	virtq_keep(&w->q);
	w->have = false;
	w->nkept++;
	MUST(virtq_kept(&w->q) == w->nkept);
}

static void irq(struct world *w)
{
	bool moved = w->q.used_moved;
	bool wanted = w->q.ready && !(peek_mem(w, w->q.avail_gpa, 2) & VIRTQ_AVAIL_F_NO_INTERRUPT);

	MUST(virtq_take_irq(&w->q) == (moved && wanted));
	MUST(!w->q.used_moved);
}

static bool inside(uint64_t gpa, uint64_t len, uint64_t align)
{
	return gpa % align == 0 && gpa < RAM && len <= RAM - gpa;
}

static void enable(struct world *w, struct input *in)
{
	uint8_t how = input_u8(in);
	uint16_t n;
	bool good;

	virtq_reset(&w->q);
	w->nkept = 0;
	w->have = false;
	w->q.size = n = how & 1 ? (uint16_t)input_int(in, 2) : (uint16_t)(1u << (how >> 1) % 5);
	w->q.desc_gpa = how & 0x80 ? input_int(in, 8) : (uint64_t)input_u8(in) << 6;
	w->q.avail_gpa = how & 0x80 ? input_int(in, 8) : (uint64_t)input_u8(in) << 6;
	w->q.used_gpa = how & 0x80 ? input_int(in, 8) : (uint64_t)input_u8(in) << 6;
	/* 2.7: sizes and alignments of the three areas, without the event fields. */
	good = n && n <= SIZE && !(n & (n - 1)) && inside(w->q.desc_gpa, 16ull * n, 16) &&
	       inside(w->q.avail_gpa, 4 + 2ull * n, 2) && inside(w->q.used_gpa, 4 + 8ull * n, 4);
	if (virtq_enable(&w->q) == 0)
		MUST(w->q.ready && w->q.next_avail == 0 && w->q.next_used == 0);
	else
		MUST(!w->q.ready);
	MUST(w->q.ready <= good); /* whatever is taken is right */
}

static void save_load(struct world *w, struct input *in)
{
	uint8_t a[64], b[64];
	struct bytes_out oa = {a, sizeof(a), false}, ob = {b, sizeof(b), false};
	struct bytes_in ia;
	struct virtq q2;
	size_t len;

	virtq_save(&w->q, &oa);
	len = (size_t)(oa.p - a);
	ia = (struct bytes_in){a, len, false};
	virtq_init(&q2, &w->mem, SIZE);
	MUST(!oa.bad && virtq_load(&q2, &ia) == 0);
	virtq_save(&q2, &ob);
	MUST(oa.left == ob.left && memcmp(a, b, len) == 0);
	MUST(!q2.ready || (q2.desc == w->q.desc && q2.avail == w->q.avail && q2.used == w->q.used));
	/* A damaged one: what is taken can be worked with. */
	a[input_u8(in) % len] ^= input_u8(in);
	ia = (struct bytes_in){a, input_u8(in) < 240 ? len : len - 1, false};
	virtq_init(&q2, &w->mem, SIZE);
	if (virtq_load(&q2, &ia) < 0)
		return;
	w->q = q2;
	w->have = false;
	w->nkept = virtq_kept(&q2);
}

/* A descriptor as a driver has it, most of them in RAM. */
static void put_desc(struct world *w, struct input *in, uint64_t flags)
{
	uint64_t i = input_u8(in), addr = input_int(in, 2) % (RAM + 16);
	uint64_t len = input_u8(in), next = input_u8(in) % (SIZE + 1), word;

	if (!w->q.ready)
		return;
	word = len | flags << 32 | next << 48;
	memcpy(w->mem.base + w->q.desc_gpa + 16 * (i % w->q.size), &addr, 8);
	memcpy(w->mem.base + w->q.desc_gpa + 16 * (i % w->q.size) + 8, &word, 8);
	w->have = false;
}

static void step(struct world *w, struct input *in)
{
	uint8_t op = input_u8(in);
	uint16_t off;

	switch (op % 9) {
	case 0:
		enable(w, in);
		break;
	case 1: /* guest memory, which may be rings */
		off = (uint16_t)input_int(in, 2) % RAM;
		input_bytes(in, w->mem.base + off, op / 9 < RAM - off ? op / 9 : RAM - off);
		w->have = false;
		break;
	case 2:
		put_desc(w, in, op / 9 % 4);
		break;
	case 3: /* and offers it */
		if (!w->q.ready)
			break;
		off = (uint16_t)peek_mem(w, w->q.avail_gpa + 2, 2);
		w->mem.base[w->q.avail_gpa + 4 + 2 * (off % w->q.size)] = input_u8(in) % SIZE;
		w->mem.base[w->q.avail_gpa + 5 + 2 * (off % w->q.size)] = 0;
		off++;
		memcpy(w->mem.base + w->q.avail_gpa + 2, &off, 2);
		w->have = false;
		break;
	case 4:
		check_peek(w);
		break;
	case 5:
		transfer(w, in);
		break;
	case 6:
		if (op / 9 % 2)
			complete(w, (uint32_t)input_int(in, 4));
		else
			keep(w);
		break;
	case 7:
		if (op / 9 % 2)
			irq(w);
		else {
			virtq_return(&w->q);
			w->nkept = 0;
			w->have = false;
		}
		break;
	case 8:
		save_load(w, in);
		break;
	}
	MUST(virtq_kept(&w->q) == w->nkept && w->nkept <= w->q.size + 0u);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;
	struct input in = {data, size};
	struct gmem mem = w.mem;

	memset(&w, 0, sizeof(w));
	w.mem = mem;
	fuzz_ram(&w.mem, RAM);
	virtq_init(&w.q, &w.mem, SIZE);
	fetch_begin(&w.mem, true);
	while (in.left)
		step(&w, &in);
	return 0;
}
