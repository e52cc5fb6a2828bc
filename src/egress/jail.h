/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The jail of podflare-egress, entered once, after everything that needs files
 * was done and before the first byte of a guest. Afterwards the process
 *
 *   - is nobody, when it was root; has no capability, and gets none;
 *   - sees an empty root directory, in namespaces of its own but for the
 *     network's, where the host allows that (its log says where not), and may
 *     not touch files by Landlock, where the kernel has it;
 *   - cannot be traced or dumped, has bounds of memory and descriptors;
 *   - can make sockets of IPv4 and IPv6, streams and datagrams, connect them, and
 *     make pairs of UNIX streams; it cannot bind, listen, accept, open, execute or
 *     fork: any other system call than those of its list kills it.
 *
 * What cannot be refused by the host (user, no_new_privs, seccomp) and fails
 * fails the whole. Built with sanitizers, which need files and processes for
 * their reports, only the user changes.
 *
 * Thread: before there are others. fork: does not.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <sys/types.h>

struct jail_user {
	uid_t uid;
	gid_t gid;
};

/* A name or a number; looks it up in the host's files. */
__must_check int jail_find_user(const char *name, struct jail_user *out, struct err *err);
__must_check int jail_enter(const struct jail_user *user, struct err *err);
