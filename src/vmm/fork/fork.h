/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fork(2) of a virtual machine. The parent's vCPUs are parked and their state
 * is saved; the process forks, which copies guest RAM and devices as
 * copy-on-write memory; the parent's vCPUs go on (unless it is paused); the
 * child makes a KVM VM of its own on the inherited memory, loads the state,
 * resets the guest's vsock connections and runs. Both have a new top of their
 * disk, put there while no vCPU runs; what is below is shared and read-only.
 *
 * The child is a child of the daemon (CLONE_PARENT), not of its VMM, so that a
 * parent may end at any time. It keeps by an allow-list: /dev/kvm, its control
 * socket, and what it made itself.
 *
 * Thread: loop thread, without the device lock. fork: this is it.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"
#include "vmm/core/machine.h"

#include <sys/types.h>

struct fork_times {
	uint64_t park_us; /* until no vCPU runs */
	uint64_t save_us; /* reading their state, the disk's new top */
	uint64_t fork_us; /* fork(2); the pause of the parent ends here */
};

/*
 * Stops the machine for good as something to be forked from: its vCPUs stay
 * parked, its clock stands still for its children. 0 or -errno; a leaf refuses with -EPERM.
 */
__must_check int machine_pause(struct machine *m, struct err *err);

/*
 * top: the parent's new top; taken over and set to -1, or not needed and left to the caller.
 * kind: of the child; a rehearsal (hotset.h) is one of a paused machine, and neither it nor a leaf
 * has children.
 * In the parent: the child's pid; or -errno, with the machine as it was before.
 * In the child: 0; nothing of the machine works until machine_fork_child().
 */
__must_check pid_t machine_fork(struct machine *m, struct layer_fds *top, enum ctl_fork_kind kind,
				struct fork_times *t, struct err *err);

/* What a child is given. */
struct fork_child {
	int ctl_fd;           /* its control socket, the caller's */
	int console_fd;       /* a ring of its own */
	struct layer_fds top; /* the top of its disk */
	int gate_fd;          /* CTL_FORK_GATE */
};

/*
 * In the child: makes the inherited machine its own and starts its vCPUs, both when the gate has
 * opened. Takes over all that c names but ctl_fd; of all other descriptors only the machine's own
 * are open afterwards. All threads of a leaf have entered its jail before its guest runs, and the
 * caller before it looks at what the guest has left in the devices' rings. On failure the process
 * is expected to end, and no guest has run.
 */
__must_check int machine_fork_child(struct machine *m, const struct fork_child *c, struct err *err);

/* In the child: microseconds since machine_fork() called fork(2). */
uint64_t machine_fork_age_us(const struct machine *m);
