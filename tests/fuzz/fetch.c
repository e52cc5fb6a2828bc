/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes that were overwritten are kept in a list until they are put back; and what was told in the
 * first run, as a sum for each time, until the second one.
 */
#include "fetch.h"
#include "input.h"

#include "vmm/virtio/queue.h"
#include "vmm/virtio/virtio_spec.h"

#define SAVED_MAX (2 * VIRTQ_SIZE_MAX + 2 * 1024u)
#define BYTES_MAX (1u << 20)
#define TOLD_MAX  (1u << 16)

struct saved {
	uint8_t *p;
	size_t len, at; /* its bytes are bytes[at...] */
};

static struct {
	const struct gmem *mem;
	bool hostile;
	bool walking; /* in virtq_peek() */
	bool in_hand; /* the chain that was shown last may be changed when it was read */
	const struct virtq_chain *ch;
	unsigned nsaved;
	size_t nbytes;
	struct saved saved[SAVED_MAX];
	uint64_t turn;
	bool compared;              /* with a first run */
	unsigned ntold, first_told; /* of this run, of the first one */
	uint64_t told[TOLD_MAX];
} g;

static uint8_t bytes[BYTES_MAX];

#define SEEN_BY_NOBODY __attribute__((no_sanitize("address", "undefined", "coverage")))

/* One chain, read twice: that the linker and the compiler have put in place what is here. */
static void check_played(void)
{
	static _Alignas(4096) uint8_t ram[4096];
	const struct gmem mem = {ram, sizeof(ram)};
	const uint64_t desc[2] = {1024, 8};
	const uint16_t offered = 1;
	static struct virtq_chain ch;
	uint8_t once[8], twice[8];
	struct virtq q;

	memcpy(ram, desc, sizeof(desc));
	memcpy(ram + 256 + 2, &offered, 2);
	virtq_init(&q, &mem, 1);
	q.size = 1;
	q.avail_gpa = 256;
	q.used_gpa = 512;
	MUST(virtq_enable(&q) == 0);
	fetch_begin(&mem, true);
	MUST(virtq_peek(&q, &ch) == 1 && ch.n_out == 1 && ch.out_len == 8);
	MUST(memcmp(ram, desc, sizeof(desc)) != 0 && memcmp(ram + 256 + 2, &offered, 2) != 0);
	virtq_read(&ch, 0, once, 8);
	virtq_read(&ch, 0, twice, 8);
	MUST(memcmp(once, twice, 8) != 0 && memcmp(once, ram + 2048, 8) == 0);
	virtq_complete(&q, &ch, 0);
	MUST(memcmp(ram, desc, sizeof(desc)) == 0 && memcmp(ram + 1024, once, 8) == 0);
	MUST(memcmp(ram + 256 + 2, &offered, 2) == 0 && !g.nsaved && !g.in_hand);
}

void fetch_begin(const struct gmem *mem, bool hostile)
{
	static bool checked;

	if (!checked) {
		checked = true;
		check_played();
	}
	g.mem = mem;
	g.hostile = hostile;
	g.walking = g.in_hand = false;
	g.nsaved = 0;
	g.nbytes = 0;
	g.turn = 0;
	g.ntold = 0;
}

void fetch_end(void)
{
	fetch_settle();
	if (g.compared)
		MUST(g.ntold == g.first_told);
	g.compared = !g.hostile;
	g.first_told = g.ntold;
}

SEEN_BY_NOBODY static uint64_t sum(const uint8_t *p, size_t len)
{
	uint64_t h = 0xcbf29ce484222325u ^ len, word;

	for (; len >= 8; p += 8, len -= 8) {
		__builtin_memcpy(&word, p, 8);
		h = (h ^ word) * 0x9e3779b97f4a7c15u;
		h ^= h >> 29;
	}
	for (; len; p++, len--)
		h = (h ^ *p) * 0x100000001b3u;
	return h;
}

void fetch_told(const void *p, size_t len)
{
	uint64_t h = sum(p, len);

	if (g.ntold == TOLD_MAX || (g.hostile && !g.compared))
		return;
	/* A find: something was read twice. It is what was done since the last time. */
	if (g.compared)
		MUST(g.ntold < g.first_told && g.told[g.ntold] == h);
	g.told[g.ntold++] = h;
}

/* --- memory that changes ------------------------------------------------------------------ */

void fetch_settle(void)
{
	while (g.nsaved) {
		const struct saved *s = &g.saved[--g.nsaved];

		memcpy(s->p, bytes + s->at, s->len);
	}
	g.nbytes = 0;
	g.in_hand = false;
}

/* A byte that is all different, and one that is nearly the same, in turns. */
SEEN_BY_NOBODY static void change(uint8_t *p, size_t len)
{
	uint8_t how = g.turn++ % 2 ? 0x01 : 0xff;

	for (size_t i = 0; i < len; i++)
		p[i] ^= how;
}

static uint8_t *save(const void *p, size_t len)
{
	size_t off = (size_t)((const uint8_t *)p - g.mem->base);

	if ((const uint8_t *)p < g.mem->base || off >= g.mem->size || len > g.mem->size - off ||
	    g.nsaved == SAVED_MAX || len > BYTES_MAX - g.nbytes)
		return NULL;
	g.saved[g.nsaved++] = (struct saved){g.mem->base + off, len, g.nbytes};
	memcpy(bytes + g.nbytes, p, len);
	g.nbytes += len;
	return g.mem->base + off;
}

void fetch_copied(const void *p, size_t len)
{
	uint8_t *at = g.hostile && g.in_hand && len ? save(p, len) : NULL;

	if (at)
		change(at, len);
}

/* A descriptor that would be refused, an index that is none: who meets it again cannot go on. */
static void change_walked(const void *p, size_t len)
{
	uint8_t *at = g.walking ? save(p, len) : NULL;

	if (at)
		memset(at, 0xff, len);
}

uint16_t fetch_16(const uint16_t *p);
uint16_t fetch_16(const uint16_t *p)
{
	uint16_t v = __atomic_load_n(p, __ATOMIC_ACQUIRE);

	change_walked(p, sizeof(v));
	return v;
}

uint64_t fetch_64(const uint64_t *p);
uint64_t fetch_64(const uint64_t *p)
{
	uint64_t v = __atomic_load_n(p, __ATOMIC_ACQUIRE);

	change_walked(p, sizeof(v));
	return v;
}

/* --- chains ------------------------------------------------------------------------------- */

/* No two pieces, of which there are n, have a byte in common. */
SEEN_BY_NOBODY static bool apart(const struct iovec *v, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		for (unsigned k = 0; k < i; k++) {
			const uint8_t *a = v[i].iov_base, *b = v[k].iov_base;

			if (a < b + v[k].iov_len && b < a + v[i].iov_len)
				return false;
		}
	return true;
}

static unsigned areas(const struct virtq *q, struct iovec v[3])
{
	v[0] = (struct iovec){(void *)(uintptr_t)q->desc, VIRTQ_DESC_BYTES(q->size)};
	v[1] = (struct iovec){(void *)(uintptr_t)q->avail, VIRTQ_AVAIL_BYTES(q->size)};
	v[2] = (struct iovec){q->used, VIRTQ_USED_BYTES(q->size)};
	return 3;
}

int __real_virtq_peek(struct virtq *q, struct virtq_chain *ch);
int __wrap_virtq_peek(struct virtq *q, struct virtq_chain *ch);
void __real_virtq_read(const struct virtq_chain *ch, uint32_t off, void *dst, uint32_t len);
void __wrap_virtq_read(const struct virtq_chain *ch, uint32_t off, void *dst, uint32_t len);
void __real_virtq_complete(struct virtq *q, const struct virtq_chain *ch, uint32_t len);
void __wrap_virtq_complete(struct virtq *q, const struct virtq_chain *ch, uint32_t len);
void __real_virtq_keep(struct virtq *q);
void __wrap_virtq_keep(struct virtq *q);
void __real_virtq_return(struct virtq *q);
void __wrap_virtq_return(struct virtq *q);
bool __real_virtq_take_irq(struct virtq *q);
bool __wrap_virtq_take_irq(struct virtq *q);

int __wrap_virtq_peek(struct virtq *q, struct virtq_chain *ch)
{
	struct iovec v[3 + VIRTQ_SIZE_MAX];
	unsigned n;
	int rc;

	fetch_settle();
	n = q->ready ? areas(q, v) : 0;
	g.walking = g.hostile && n && apart(v, n);
	rc = __real_virtq_peek(q, ch);
	if (rc == 1) {
		memcpy(v + n, ch->iov, (ch->n_out + ch->n_in) * sizeof(v[0]));
		g.in_hand = g.walking && apart(v, n + ch->n_out + ch->n_in);
		fetch_told(ch->iov, (ch->n_out + ch->n_in) * sizeof(v[0]));
	}
	g.walking = false;
	g.ch = ch;
	if (!g.in_hand)
		fetch_settle();
	fetch_told(&rc, sizeof(rc));
	return rc;
}

void __wrap_virtq_read(const struct virtq_chain *ch, uint32_t off, void *dst, uint32_t len)
{
	__real_virtq_read(ch, off, dst, len);
	for (unsigned i = 0; ch == g.ch && i < ch->n_out && len; i++) {
		uint32_t size = (uint32_t)ch->iov[i].iov_len, part;

		if (off >= size) {
			off -= size;
			continue;
		}
		part = size - off < len ? size - off : len;
		fetch_copied((const uint8_t *)ch->iov[i].iov_base + off, part);
		off = 0;
		len -= part;
	}
}

void __wrap_virtq_complete(struct virtq *q, const struct virtq_chain *ch, uint32_t len)
{
	uint32_t what[2] = {ch->head, len};

	__real_virtq_complete(q, ch, len);
	fetch_settle();
	fetch_told(what, sizeof(what));
}

void __wrap_virtq_keep(struct virtq *q)
{
	__real_virtq_keep(q);
	fetch_settle();
	fetch_told("kept", 4);
}

void __wrap_virtq_return(struct virtq *q)
{
	fetch_settle();
	__real_virtq_return(q);
}

bool __wrap_virtq_take_irq(struct virtq *q)
{
	bool rc;

	fetch_settle();
	rc = __real_virtq_take_irq(q);
	fetch_told(&rc, sizeof(rc));
	return rc;
}
