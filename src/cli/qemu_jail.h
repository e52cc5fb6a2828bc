/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU may do of the host. A sandbox's code is executed by QEMU's emulation of a processor,
 * which its makers do not call a wall: who gets through it has what QEMU has. So that is little:
 *
 * - files, by Landlock: programs and libraries of the system, what is on its command line; of that
 *   the state disk, and disks that are writable, for writing too. No other one to open, no signal
 *   to others, no TCP port to bind but the one that is forwarded, and none to dial where nothing
 *   goes out.
 * - system calls, by a filter beside QEMU's own (qemu_filter.h), of which Landlock sees nothing: no
 *   sockets but TCP, UDP and ICMP, and TCP that comes in where nothing goes out; no modes, owners,
 *   times and attributes of files changed; no limits, memory, queues and keyrings of other
 *   processes; no namespaces.
 * - of its environment nothing; no core; of root's capabilities those that open files and ports,
 *   and of those that another user was given, where the port is a low one, the one for it.
 *
 * It stays the same user: docs/threat-model.md says what that leaves.
 * Thread: the child's only one, between fork and exec.
 */
#pragma once

#include "cli/qemu.h"

/* Becomes argv[0], or says on stderr why not and returns. */
void qemu_jail_exec(char *const argv[], const struct qemu_config *c);

/* Says so when this kernel has no Landlock. */
void qemu_jail_tell(void);
