/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The QEMU process of the emulated host: its command line and its start.
 * What happens afterwards is box.h's business.
 *
 * The machine: q35 without what is not needed, an emulated AMD processor that
 * has SVM, one virtual processor, virtio devices. All its streams are
 * socket pairs made here, the console's a pipe; it opens no socket of its own until a port is
 * forwarded. Its user network lets out what podflare-egress in it dials, or
 * nothing at all (restrict=on). What it may do of the host: qemu_jail.h.
 *
 * fork: qemu_start() makes the child, which gets exactly its streams, dies
 * with this process (PR_SET_PDEATHSIG), goes to jail and execs at once.
 */
#pragma once

#include "cli/paths.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define QEMU_DISKS_MAX 24    /* q35 has slots for a few more */
#define QEMU_NETDEV    "net" /* id of the user network */
#define QEMU_GUEST_IP  "10.0.2.15"
#define QEMU_NET       "10.0.2.0/24" /* its user network; .2 is this machine's loopback */

/* Streams between us and the machine, in the order of enum qemu_stream. */
enum qemu_stream {
	QEMU_CONSOLE, /* kernel console, and what QEMU itself prints; read only */
	QEMU_ORDERS,  /* lines in both directions; see box/rc */
	QEMU_OUTPUT,  /* stdout of the program that runs inside */
	QEMU_ERRORS,  /* its stderr */
	QEMU_MONITOR, /* QMP */
	QEMU_PULSE,   /* bytes that only cause interrupts; see box.h */
	QEMU_STREAMS,
};

/* What the machine has of a network. */
enum qemu_network {
	QEMU_NO_NETWORK,
	QEMU_INWARD,  /* forwarded ports come in; nothing goes out */
	QEMU_OUTWARD, /* and it reaches what this host reaches; 10.0.2.2 is this host's loopback */
};

struct qemu_disk {
	char serial[16]; /* /dev/podflare/SERIAL inside */
	char path[PATH_MAX];
	bool readonly;
};

struct qemu_config {
	const struct paths *paths;
	unsigned int memory_mib;
	unsigned int tsc_khz; /* of this machine's processor, see tsc.h */
	enum qemu_network network;
	uint16_t port; /* here, that will be forwarded; 0: none */
	struct qemu_disk disks[QEMU_DISKS_MAX];
	size_t ndisks;
};

struct qemu {
	pid_t pid;
	int pidfd;
	int fds[QEMU_STREAMS]; /* our ends, non-blocking */
};

/* Appends a disk. Space that is discarded inside returns to the file system here.
 * -E2BIG or -ENAMETOOLONG with a sentence. */
__must_check int qemu_add_disk(struct qemu_config *c, const char *serial, const char *path,
			       bool readonly, struct err *err);

/*
 * QEMU listens on a forwarded port with room for one connection that waits; with more at once the
 * kernel drops some, and they are late by a second or reset. This makes the room larger, by a copy
 * of QEMU's own descriptor. Best effort: 0 or -errno.
 */
int qemu_widen_port(const struct qemu *q, uint16_t port);

/* Starts the process; on success the caller owns pid, pidfd and fds. */
__must_check int qemu_start(struct qemu *q, const struct qemu_config *c, struct err *err);
