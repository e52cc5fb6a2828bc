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
 * Thread: that of the first vCPU. fork: the copy goes on with the devices as they are.
 */
#pragma once

#include "vmm/core/vcpu.h"

#include <stdbool.h>
#include <stdint.h>

struct guest_queue {
	uint64_t desc, avail, used;
	uint16_t avail_idx, used_seen;
};

struct guest {
	bool started;
	unsigned int wrong; /* what did not come out as it should */
	struct guest_queue rx, tx, event, disk;
};

/* For struct machine's `run`, of vCPU 0: a moment of the guest's life. */
int guest_run(struct guest *g, struct vcpu *v);
