/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block device as a hostile guest sees it. The input is a script: register
 * accesses, writes to guest memory, requests with fields from the input, forks of
 * the disk, save and load. Well-formed requests go to a copy of the disk in plain
 * memory as well, and the disk must agree with it; where the host's storage has failed, the guest
 * is told, and what it reads is stable. All of it happens twice, the second time with a guest whose
 * memory changes behind the device's reads (fetch.h). The sanitizers watch the rest.
 */
#define _GNU_SOURCE
#include "../virtio_driver.h"
#include "fake_storage.h"
#include "fetch.h"
#include "ram.h"

#include "vmm/virtio/blk.h"
#include "vmm/virtio/virtio_spec.h"

#define RAM     (512u << 10)
#define DISK    (8ull * LAYERS_CLUSTER)
#define SECTORS (DISK / VIRTIO_BLK_SECTOR)
#define QUEUE   16u
#define RING    0x1000u
#define AVAIL   0x1400u
#define USED    0x1800u
#define HEADER  0x2000u
#define STATUS  0x2800u
#define DATA    0x10000u /* to the end of RAM */
#define STEPS   100u

struct world {
	struct gmem mem;
	struct layers disk;
	struct blk b;
	uint8_t want[DISK];
	bool marked[DISK / LAYERS_CLUSTER]; /* `want` has something else than zeros there, maybe */
	bool known;                         /* `want` is what the disk contains */
	uint16_t idx;                       /* of the well-behaved driver */
	unsigned again;
	uint64_t failed; /* requests that the host failed, as the device told */
};

static void on_irq(void *arg)
{
	(void)arg;
}

static void on_failed(void *arg, int errnum)
{
	((struct world *)arg)->failed++;
	MUST(errnum > 0);
}

static void on_again(void *arg)
{
	((struct world *)arg)->again++;
}

static void on_piled(void *arg)
{
	MUST(layers_wants_flatten(&((struct world *)arg)->disk));
}

static void device_init(struct world *w, struct blk *b)
{
	const struct virtio_host host = {.raise_irq = on_irq, .arg = w};
	const struct blk_events events = {
		.again = on_again, .piled = on_piled, .failed = on_failed, .arg = w};

	blk_init(b, &w->mem, &host, &w->disk, &events);
}

static void reg(struct world *w, uint32_t off, uint32_t v)
{
	driver_write(&w->b.dev, off, v);
	fetch_settle();
}

static void poke(struct world *w, uint32_t at, uint64_t v, unsigned n)
{
	MUST(at + n <= RAM);
	memcpy(w->mem.base + at, &v, n);
}

/* The start of a driver that keeps the rules. */
UNGUIDED static void start(struct world *w, uint8_t features)
{
	driver_negotiate(&w->b.dev, features & 1 ? 0u
						 : VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_DISCARD |
							   VIRTIO_BLK_F_WRITE_ZEROES);
	memset(w->mem.base + RING, 0, 0x1000);
	w->idx = 0;
	reg(w, VIRTIO_MMIO_QUEUE_SEL, 0);
	reg(w, VIRTIO_MMIO_QUEUE_NUM, QUEUE);
	reg(w, VIRTIO_MMIO_QUEUE_DESC_LOW, RING);
	reg(w, VIRTIO_MMIO_QUEUE_DRIVER_LOW, AVAIL);
	reg(w, VIRTIO_MMIO_QUEUE_DEVICE_LOW, USED);
	reg(w, VIRTIO_MMIO_QUEUE_READY, 1);
	reg(w, VIRTIO_MMIO_STATUS, 0xf);
}

static void desc(struct world *w, uint32_t i, uint64_t addr, uint32_t len, uint32_t flags)
{
	poke(w, RING + 16 * i, addr, 8);
	poke(w, RING + 16 * i + 8, len | (uint64_t)flags << 32 | (uint64_t)(i + 1) << 48, 8);
}

static void offer(struct world *w)
{
	poke(w, AVAIL + 4 + 2 * (w->idx % QUEUE), 0, 2);
	poke(w, AVAIL + 2, ++w->idx, 2);
}

/* Does what is offered, as long as the device asks for more time. */
static void drive(struct world *w)
{
	w->again = 0;
	reg(w, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	for (int i = 0; i < 64 && w->again; i++) {
		w->again = 0;
		blk_continue(&w->b);
		fetch_settle();
	}
}

static void header(struct world *w, uint32_t type, uint64_t sector)
{
	poke(w, HEADER, type, 8);
	poke(w, HEADER + 8, sector, 8);
	poke(w, STATUS, 0xee, 1);
}

/* A request with everything from the input, cut into descriptors at odd places. */
static void any_request(struct world *w, struct input *in)
{
	uint32_t n = input_u8(in) % 8, i = 0;

	header(w, input_u8(in), input_int(in, input_u8(in) % 9));
	desc(w, i++, HEADER, 1 + input_u8(in) % 32, VIRTQ_DESC_F_NEXT);
	while (n--)
		desc(w, i++, DATA + input_int(in, 2), (uint32_t)input_int(in, 2),
		     VIRTQ_DESC_F_NEXT | (input_u8(in) & 3));
	desc(w, i, STATUS, 1 + input_u8(in) % 4, VIRTQ_DESC_F_WRITE);
	offer(w);
	w->known = false;
	drive(w);
}

/* A request that is in order: must do what it says, unless the host fails it. */
static void good_request(struct world *w, struct input *in)
{
	static const uint32_t types[] = {VIRTIO_BLK_T_IN,      VIRTIO_BLK_T_OUT,
					 VIRTIO_BLK_T_FLUSH,   VIRTIO_BLK_T_WRITE_ZEROES,
					 VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_GET_ID};
	uint32_t type = types[input_u8(in) % 6], len;
	uint64_t sector = input_int(in, 2) % SECTORS;
	uint32_t sectors = 1 + (uint32_t)input_int(in, 2) % 600;
	uint8_t *data = w->mem.base + DATA, seed = input_u8(in), status;
	uint64_t refused = w->b.refused, errors = w->b.io_errors;
	unsigned failures = fake_storage.failures;

	if (sectors > SECTORS - sector)
		sectors = (uint32_t)(SECTORS - sector);
	len = sectors * VIRTIO_BLK_SECTOR;
	start(w, 0);
	header(w, type, sector);
	desc(w, 0, HEADER, 16, VIRTQ_DESC_F_NEXT);
	desc(w, 1, DATA, len,
	     VIRTQ_DESC_F_NEXT | (type && type != VIRTIO_BLK_T_GET_ID ? 0 : VIRTQ_DESC_F_WRITE));
	memset(data, seed, len);
	if (type == VIRTIO_BLK_T_WRITE_ZEROES || type == VIRTIO_BLK_T_DISCARD) {
		desc(w, 1, DATA, 16, VIRTQ_DESC_F_NEXT);
		poke(w, DATA, sector, 8);
		poke(w, DATA + 8, sectors, 8);
	}
	desc(w, type == VIRTIO_BLK_T_FLUSH ? 1 : 2, STATUS, 1, VIRTQ_DESC_F_WRITE);
	offer(w);
	drive(w);
	memcpy(&status, w->mem.base + STATUS, 1);
	MUST(w->b.refused == refused);
	if (status != VIRTIO_BLK_S_OK) {
		MUST(status == VIRTIO_BLK_S_IOERR && w->b.io_errors == errors + 1 &&
		     fake_storage.failures > failures);
		w->known = false;
		return;
	}
	MUST(w->b.io_errors == errors);
	if (type == VIRTIO_BLK_T_IN && w->known)
		MUST(memcmp(data, w->want + sector * VIRTIO_BLK_SECTOR, len) == 0);
	if (type == VIRTIO_BLK_T_OUT) {
		memset(w->want + sector * VIRTIO_BLK_SECTOR, seed, len);
		for (uint64_t s = sector; s < sector + sectors; s++)
			w->marked[s * VIRTIO_BLK_SECTOR / LAYERS_CLUSTER] = true;
	}
	if (type == VIRTIO_BLK_T_GET_ID)
		MUST(memcmp(data, "podflare-scratch\0\0\0", VIRTIO_BLK_ID_BYTES) == 0 &&
		     data[VIRTIO_BLK_ID_BYTES] == seed);
	if (type == VIRTIO_BLK_T_DISCARD)
		w->known = false; /* old bytes or zeros */
	if (type == VIRTIO_BLK_T_WRITE_ZEROES)
		memset(w->want + sector * VIRTIO_BLK_SECTOR, 0, len);
}

/* The disk as it is becomes what is wanted; or it is compared. Most of it is nothing on both sides.
 */
UNGUIDED static void look(struct world *w)
{
	static uint8_t got[LAYERS_CLUSTER];
	unsigned bad = fake_storage.bad;

	fake_storage.bad = 0;
	for (uint32_t c = 0; c < DISK / LAYERS_CLUSTER; c++) {
		uint64_t off = c * (uint64_t)LAYERS_CLUSTER;
		struct iovec v = {got, sizeof(got)};

		if (!w->disk.map[c] && !w->marked[c])
			continue;
		MUST(layers_read(&w->disk, off, &v, 1) == 0);
		if (w->known)
			MUST(memcmp(got, w->want + off, sizeof(got)) == 0);
		else
			memcpy(w->want + off, got, sizeof(got));
		w->marked[c] = w->disk.map[c];
	}
	fake_storage.bad = bad;
	w->known = true;
}

static void fork_disk(struct world *w, uint8_t how)
{
	unsigned failures = fake_storage.failures;
	struct layer_fds a, b;

	if (!(how & 1)) {
		MUST(layers_flatten(&w->disk, how / 2) >= 0 || fake_storage.failures > failures);
		return;
	}
	if (layers_make_room(&w->disk, false) < 0) {
		MUST(fake_storage.failures > failures);
		return;
	}
	a = fake_storage_layer();
	MUST(layers_push(&w->disk, a) == 0);
	if (how & 2) {
		b = fake_storage_layer();
		MUST(layers_replace_top(&w->disk, b) == 0);
	}
	MUST(virtio_dev_fork_child(&w->b.dev) == 0);
	fetch_settle();
}

/* Saves, loads into a second device, saves again: the same bytes; then a damaged copy. */
static void save_load(struct world *w, struct input *in)
{
	static uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	static struct blk b2;
	int len = virtio_dev_save(&w->b.dev, a, sizeof(a));

	MUST(len > 0);
	device_init(w, &b2);
	MUST(virtio_dev_load(&b2.dev, a, (size_t)len) == 0);
	MUST(virtio_dev_save(&b2.dev, b, sizeof(b)) == len && memcmp(a, b, (size_t)len) == 0);
	device_init(w, &b2);
	a[input_int(in, 2) % (unsigned)len] ^= input_u8(in);
	if (virtio_dev_load(&b2.dev, a, (size_t)len) == 0) {
		virtio_dev_resume(&b2.dev);
		fetch_settle();
		w->known = false;
	} else {
		MUST(b2.dev.status == 0);
	}
}

UNGUIDED static void check(const struct world *w)
{
	const struct layers *l = &w->disk;
	uint32_t held[LAYERS_MAX] = {0}, used = 0, stored = 0;

	for (uint32_t c = 0; c < l->clusters; c++)
		if (l->map[c]) {
			held[l->map[c] - 1]++;
			used++;
		}
	MUST(used == l->used && l->count <= LAYERS_MAX && l->top_rw >= 0);
	MUST(!l->top_stale || fake_storage.failures);
	for (unsigned i = 0; i < LAYERS_MAX; i++) {
		MUST(l->layer[i].held == held[i]);
		MUST(l->layer[i].fd >= 0 ? held[i] || i == l->top : !held[i]);
		MUST(l->layer[i].stored >= held[i]);
		stored += l->layer[i].stored;
	}
	MUST(stored == l->stored && stored - l->layer[l->top].stored <= LAYERS_BELOW * l->clusters);
	MUST(w->b.io_errors <= w->failed && w->failed <= fake_storage.failures);
}

static void step(struct world *w, struct input *in)
{
	uint8_t buf[256], op = input_u8(in);
	uint64_t off;
	unsigned len;

	switch (op % 12) {
	case 0:
		w->known = false; /* may be a notification */
		reg(w, 4u * input_u8(in), (uint32_t)input_int(in, 4));
		break;
	case 1:
		off = input_int(in, 2);
		virtio_mmio_read(&w->b.dev, off, buf, 1 + op / 12 % 8);
		break;
	case 2:
		off = input_int(in, 2);
		len = input_u8(in);
		input_bytes(in, buf, len);
		memcpy(w->mem.base + off, buf, len);
		break;
	case 3:
		w->known = false;
		start(w, op >> 7);
		break;
	case 4:
	case 5:
		any_request(w, in);
		break;
	case 6:
	case 7:
	case 8:
		look(w);
		good_request(w, in);
		look(w);
		break;
	case 9:
		if (op & 0x80)
			reg(w, VIRTIO_MMIO_STATUS, 0); /* nothing waits: the contents stay */
		else
			w->known = false;
		fork_disk(w, op / 12);
		break;
	case 10:
		if (op & 0x80) {
			fake_storage.good = op / 12;
			fake_storage.bad = 1 + input_u8(in) % 4;
			break;
		}
		w->known = false;
		blk_continue(&w->b);
		fetch_settle();
		break;
	case 11:
		save_load(w, in);
		break;
	}
	check(w);
}

/* What the device did of which it has not told in its rings. */
static void tell(struct world *w)
{
	const uint64_t did[] = {w->b.dev.status,      w->b.bytes_read, w->b.bytes_written,
				w->b.refused,         w->b.io_errors,  w->b.no_space,
				fake_storage.failures};

	fetch_told(did, sizeof(did));
}

static void run(struct world *w, struct input in, bool hostile)
{
	struct gmem mem = w->mem;

	memset(w, 0, sizeof(*w));
	w->mem = mem;
	fake_storage = (struct fake_storage){.copied = fetch_copied};
	fuzz_ram(&w->mem, RAM);
	MUST(layers_init(&w->disk, DISK, fake_storage_layer()) == 0);
	w->known = true; /* zeros */
	device_init(w, &w->b);
	fetch_begin(&w->mem, hostile);
	for (unsigned i = 0; in.left && i < STEPS; i++) {
		step(w, &in);
		tell(w);
	}
	w->known = false;
	look(w);
	fetch_told(w->want, DISK);
	fetch_told(w->mem.base, RAM);
	fetch_end();
	layers_free(&w->disk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;

	run(&w, (struct input){data, size}, false);
	run(&w, (struct input){data, size}, true);
	return 0;
}
