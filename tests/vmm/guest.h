/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest would do, done by a vCPU's thread without one: it drives both
 * devices by exits that it makes up, so that all that follows from them, down to
 * the system calls, happens on that thread and in its jail.
 *
 * The disk is written, read, flushed and discarded once. Then streams are served
 * on any port: what comes is sent back; and a stream whose first byte is 'S'
 * gets a SHUTDOWN for receiving, 'R' an RST, 'B' 32 KiB of 'B', 'E' 32 KiB of 'E' and an RST.
 * Before it is sent back, 'D' has the disk used again, by this thread and by the loop's, 'H' the
 * device lock held for a while, and 'K' KVM_RUN called, for a stay of no length.
 *
 * Or it is busy: the first vCPU reads what it wrote to the disk, and writes anew, without a pause;
 * the others compute in guest memory. Once in each process, when every vCPU has done a good deal
 * there, it reports GUEST_STATUS_READY.
 *
 * Thread: that of the first vCPU; guest_compute() of any other. fork: the copy goes on with the
 * devices as they are, and with requests that are in flight.
 */
#pragma once

#include "vmm/core/vcpu.h"

#include <stdbool.h>
#include <stdint.h>

struct guest_queue {
	uint64_t desc, avail, used;
	uint16_t avail_idx, used_seen;
};

#define GUEST_PLACES 32u

struct guest {
	bool started;
	/* Busy: what is in flight, at which of so many places, and what the disk holds there. */
	enum { GUEST_NOTHING, GUEST_READS, GUEST_WRITES } flight;
	unsigned int rounds;
	uint8_t holds[GUEST_PLACES];
	unsigned int wrong; /* what did not come out as it should */
	struct guest_queue rx, tx, event, disk;
};

/* For struct machine's `run`, of vCPU 0: a moment of the guest's life. */
int guest_run(struct guest *g, struct vcpu *v);

/* The same, busy; and of other vCPUs: what it found wrong is added to *wrong. */
int guest_busy(struct guest *g, struct vcpu *v);
int guest_compute(struct vcpu *v, _Atomic uint32_t *wrong);
