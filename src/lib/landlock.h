/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock: a second wall behind a seccomp filter, with nothing allowed, or with what a program of
 * others needs. What the process holds open already is not touched.
 *
 * Thread: landlock_deny() and landlock_allow() count for the calling thread and for what it makes
 * from then on. fork: inherited, and cannot be given back.
 */
#pragma once

#include "lib/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Version of the kernel's Landlock; 0: it has none, or it is not turned on. */
int landlock_abi(void);

/*
 * From here on no path can be opened, made, executed or removed; nor, where the kernel's version
 * has these, a file be truncated by name (3), a TCP port be bound and, unless `dials`, connected to
 * (4), a device's ioctl called on what was opened afterwards (5), an abstract UNIX socket of others
 * connected to, or a signal sent to others (6). Takes PR_SET_NO_NEW_PRIVS. The version that does
 * it, 0 for none; or -errno.
 *
 * It does not see, so that a filter has to refuse: modes, owners, times and extended attributes of
 * files; UNIX sockets that lie in the file system; UDP, other protocols (MPTCP is one), data sent
 * along as a connection is made (MSG_FASTOPEN), and listen() without bind(), on a port that the
 * kernel picks.
 */
__must_check int landlock_deny(bool dials);

enum landlock_right {
	LANDLOCK_READ = 1, /* files, and lists of directories */
	LANDLOCK_EXECUTE = 2,
	LANDLOCK_WRITE = 4, /* into files that are there */
	LANDLOCK_IOCTL = 8, /* of a device */
};

/* A file, or a directory with all below it; behind links, as it is when the rule is made. */
struct landlock_path {
	const char *path;
	unsigned int rights; /* of enum landlock_right */
};

struct landlock_rules {
	const struct landlock_path *paths;
	size_t n;
	uint16_t port; /* of TCP, that may be bound; 0: none */
	bool dials;
};

/* The same, but for this. Paths that are not there are left out. */
__must_check int landlock_allow(const struct landlock_rules *rules);
