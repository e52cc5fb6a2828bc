/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk of a virtqueue, for every content of guest memory (which may change
 * between any two loads), every address of its three areas, every index it may
 * stand at, and each size of up to 32: no access is outside of guest memory or
 * of the chain, no arithmetic is undefined, and a chain has no more segments
 * than the queue has descriptors. (That its bytes are no more than
 * VIRTQ_CHAIN_BYTES_MAX needs relations that intervals do not have: it is for
 * tests/fuzz and tests/unit.)
 *
 * Devices have queues of up to 256. Eva follows every pair of counts of readable
 * and writable segments by itself, so each doubling costs four to seven times as
 * much: 32 takes most of a minute with all below it. The sizes beyond add no case.
 * The size comes in as the bound of the walk, as the bound of an index, as the
 * mask of the rings' places, and as the length of the three areas, which
 * virtq_enable() compares with guest memory by formulas that are linear in it; no
 * branch asks for a certain size. The walk stores its segment at a place below the
 * number of its steps, hence of the size, which is no more than VIRTQ_SIZE_MAX, and
 * so many places there are; and 16 bytes times 256 overflow nothing.
 */
#include "shim.h"

#include "vmm/virtio/queue.c"

#define RAM 65536u

static uint8_t ram[RAM];

/* BROKEN: more memory is claimed than there is, which must be found. */
#ifdef BROKEN
#define CLAIMED (RAM + 16)
#else
#define CLAIMED RAM
#endif

static void walk(uint16_t size)
{
	struct gmem gm = {.base = ram, .size = CLAIMED};
	struct virtq_chain ch;
	struct virtq q;
	int rc;

	virtq_init(&q, &gm, VIRTQ_SIZE_MAX);
	q.size = size;
	q.desc_gpa = any64();
	q.avail_gpa = any64();
	q.used_gpa = any64();
	if (virtq_enable(&q) < 0)
		return;
	q.next_avail = q.next_used = any16();
	rc = virtq_peek(&q, &ch);
	if (rc == 1) {
		//@ assert 1 <= ch.n_out + ch.n_in <= size;
		if (any_bool()) {
			virtq_complete(&q, &ch, any32());
		} else {
			virtq_keep(&q);
			virtq_return(&q);
		}
		virtq_take_irq(&q);
	}
}

int main(void)
{
	Frama_C_make_unknown((char *)ram, RAM);
	walk(1);
	walk(2);
	walk(4);
	walk(8);
	walk(16);
	walk(32);
	return 0;
}
