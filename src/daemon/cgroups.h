/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control groups (cgroup v2) of the daemon and its VMs, where the host has
 * delegated them (systemd: Delegate=yes). Below the group that it was started
 * in, DIR, the daemon makes
 *
 *   DIR/podflare-DEV-INODE          of the state directory: no two daemons share it
 *     daemon                        the daemon
 *     vm-N                          one for each VMM, templates' included (vm_group.h)
 *     proxy-N                       one for each egress proxy (egress/proxy_group.h)
 *
 * It does not stay in DIR itself, as a group with processes cannot have
 * controllers turned on for those below it. For the same reason no process gets
 * into DIR any more when it was killed there: who starts it again in the same
 * group does so by way of DIR/podflare-start (lib/cgroup2.h), which it leaves.
 *
 * What a daemon that was killed has left is found at the next start on the same
 * state directory, whose lock says that there is no other: its processes, if
 * there are any left, are killed (cgroup.kill), its groups removed.
 *
 * Thread: the loop's; jobs of the worker (group_worker.h) touch groups by dir_fd
 * only. fork: the descriptor is close-on-exec.
 */
#pragma once

#include "daemon/config.h"
#include "daemon/group_worker.h"

struct cgroups {
	bool on;
	int dir_fd;               /* of podflare-DEV-INODE */
	unsigned int controllers; /* that are turned on: enum cgroup2_controller */
	bool disks_in_memory;
	char io[96];   /* for io.max of each VM, or "" */
	uint64_t last; /* N of the latest vm-N or proxy-N */
	struct group_worker worker;
	struct group_job prime;
	bool priming;
};

/*
 * As c->cgroup wants it; one line of the log says what has come of it. The disks' directory must be
 * there. 0 with on or without; -errno where it is required, or where a limit was set that cannot be
 * kept.
 */
int cgroups_start(struct cgroups *g, struct loop *loop, const struct config *c, struct err *err);
/* When there is no VM any more. The daemon stays where it is, as its service manager expects. */
void cgroups_stop(struct cgroups *g);

/*
 * A process is to be moved soon: what a move has to wait for begins to pass. Cheap, and may be
 * called as often as one likes.
 */
void cgroups_prime(struct cgroups *g);

/* Writes a file of a group, path below dir_fd. */
__must_check int cgroups_write(int dir_fd, const char *path, const char *text);
