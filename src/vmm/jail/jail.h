/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VMM gives up before it listens to anyone: descriptors beyond a bound,
 * core files, its view of the network, of other processes' objects and of the
 * host's files (its root is empty, in a mount namespace of its own, and so are its
 * children's), capabilities, new privileges, files once more (Landlock), and every
 * system call, and every argument of one, that it has no use for (jail_rules.h). It
 * opens no file, makes no socket and passes no descriptor on, ever: to try kills it.
 *
 * The threads of vCPUs, which deal with what the guest wrote, may do less: each
 * enters a jail of its own within that of the process.
 *
 * A leaf, a VM that is not to be forked, needs nothing of what makes, saves and
 * forks VMs once it is made. Each of its threads gives that up, too, before its
 * guest runs: it makes no process, thread, VM, vCPU, memory slot, mapping or
 * descriptor any more, and reads or writes no state of a vCPU.
 *
 * Thread: jail_enter() is called once by main() before any thread exists,
 * jail_enter_thread() by each thread for itself.
 * fork: all of it is inherited; the child's new threads enter theirs.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <linux/filter.h>
#include <stdbool.h>

#define JAIL_INSNS 512u

/* What clone(2) is given for a thread, by libc and by us: no other flags make one. */
#define JAIL_THREAD_FLAGS                                                                   \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_SIGHAND | CLONE_THREAD | \
	 CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

enum jail_kind {
	JAIL_PROCESS,   /* of all threads */
	JAIL_VCPU,      /* of a vCPU's thread, within that */
	JAIL_LEAF,      /* of the loop's thread of a leaf, within that of the process */
	JAIL_LEAF_VCPU, /* of a leaf's vCPU's thread, within that of the process */
	JAIL_KINDS
};

struct jail_filter {
	struct sock_filter insn[JAIL_INSNS];
	unsigned short len;
};

/* The filters of threads, made before the process's own forbids what that takes. */
struct jail {
	struct jail_filter filter[JAIL_KINDS]; /* none for JAIL_PROCESS */
};

/*
 * without_namespaces: a host that allows none (lib/spaces.h) is put up with; otherwise that is an
 * error. Landlock is done without where the kernel has none. The daemon has told of both.
 */
__must_check int jail_enter(struct jail *j, bool without_namespaces, struct err *err);

/* Of the calling thread; not JAIL_PROCESS. One system call, no memory: 0 or -errno. */
__must_check int jail_enter_thread(const struct jail *j, enum jail_kind kind);
