/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine's disk: layers, the block device in front of them, and the work
 * that the loop thread does for both. That is:
 *
 * - requests that were too many for one stay under the lock (blk.h, `again`): the rest of them,
 *   one budget a turn of the loop;
 * - failures of the host (full, broken): reported to the owner, at most one a second;
 * - too many layers, or such that take up too much: some clusters a millisecond until it is well.
 *   It begins some time after the fork or the write that made it so, as many a child has ended by
 *   then; at once, and with larger steps, when forks could meet a limit. After a failure it is
 *   tried again a second later, then two, at last once a minute.
 *
 * An idle disk wakes nobody.
 *
 * Thread: loop thread, except the device's own entry points; `again`, `piled`, `errnum` and
 * `failures` are written under the device lock.
 * fork: the parent's top goes under its new one (machine_disk_split()); the child puts its own on
 * top of what it inherited and counts failures anew (machine_disk_fork_child()).
 */
#pragma once

#include "lib/err.h"
#include "lib/loop.h"
#include "vmm/disk/layers.h"
#include "vmm/virtio/blk.h"

#include <stdbool.h>
#include <stdint.h>

#define MACHINE_DISK_MIN_MIB 64u
#define MACHINE_DISK_MAX_MIB 65536u

struct machine;

struct machine_disk {
	struct layers layers;
	struct blk blk;
	bool again;        /* requests wait for the loop thread */
	bool piled;        /* layers are to be thinned out, and the loop thread knows or wakes */
	int errnum;        /* of the last failure */
	uint64_t failures; /* requests that the host failed */
	uint64_t told;     /* of them, reported */
	struct loop_timer report, flatten;
	uint64_t retry_ns; /* flattening has failed, and is tried again after this; 0: it has not */
};

/* An empty disk; the descriptors of `top` are taken over on success. */
__must_check int machine_disk_init(struct machine *m, uint32_t mib, struct layer_fds top,
				   struct err *err);

/* What is due, after the hand-over descriptor has woken the loop. */
void machine_disk_turn(struct machine *m);

/* With the vCPUs parked: carries out all that waits, as the machine is never to run again. */
void machine_disk_drain(struct machine *m);

/*
 * Before a fork, with the guest still running, but its programs frozen: whatever
 * machine_disk_split() needs and could take long. 0 or -errno. The time it takes is bounded
 * (layers_make_room()): -EAGAIN when that does not do, and what is to be done goes on.
 */
__must_check int machine_disk_make_room(struct machine *m, struct err *err);

/*
 * Around a fork: waits for the request that is being carried out, and has none begun until the
 * release. So no vCPU is late for parking because of the host's storage.
 */
void machine_disk_hold(struct machine *m);
void machine_disk_release(struct machine *m);

/*
 * In the parent, parked: from here on nobody writes to what the disk has been made of up to now.
 * `top` is taken over (and set to -1) unless the present one is unused and stays. 0 or -errno,
 * with the disk as it was; -EAGAIN as above, if the guest has written much since.
 */
__must_check int machine_disk_split(struct machine *m, struct layer_fds *top, struct err *err);

/* In the child, before virtio_dev_resume(): its own top, taken over on success. */
__must_check int machine_disk_fork_child(struct machine *m, struct layer_fds top, struct err *err);

/* In both, when they run again: layers that have become too many, or too large. */
void machine_disk_settle(struct machine *m);
