/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VMM gives up before it listens to anyone: descriptors beyond a bound,
 * core files, its view of the network and of other processes' objects,
 * capabilities, new privileges, files (Landlock), and every system call, and
 * every argument of one, that it has no use for (jail_rules.h). It opens no
 * file, makes no socket and passes no descriptor on, ever: to try kills it.
 *
 * The threads of vCPUs, which deal with what the guest wrote, may do less: each
 * enters a jail of its own within that of the process.
 *
 * Thread: jail_enter() is called once by main() before any thread exists,
 * jail_enter_vcpu() by each thread of a vCPU for itself.
 * fork: all of it is inherited; the child's new threads enter theirs.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <linux/filter.h>
#include <stdbool.h>

#define JAIL_VCPU_INSNS 512u

/* The filter of vCPU threads, made before the process's own forbids what that takes. */
struct jail {
	struct sock_filter vcpu[JAIL_VCPU_INSNS];
	unsigned short vcpu_len;
};

/*
 * without_namespaces: a host that allows none (lib/spaces.h) is put up with; otherwise that is an
 * error. Landlock is done without where the kernel has none. The daemon has told of both.
 */
__must_check int jail_enter(struct jail *j, bool without_namespaces, struct err *err);

/* One system call, no memory: 0 or -errno. */
__must_check int jail_enter_vcpu(const struct jail *j);
