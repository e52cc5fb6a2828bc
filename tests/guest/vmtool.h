/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs that drive a VMM without a daemon share: starting one,
 * handing it what CTL_BOOT and CTL_FORK ask for, its console. They end with a
 * message when something of their own goes wrong.
 */
#pragma once

#include "proto/control.h"
#include "proto/guest.h"

#define VMTOOL_DISK_MIB 1024u

struct vmtool {
	int sock;
	struct console_ring *ring;
	uint64_t seen; /* console bytes printed */
};

struct vmtool_boot {
	const char *vmm, *kernel, *initrd, *root;
	uint32_t mem_mib, vcpus;
	const char *cmdline;
	int sndbuf; /* of the VMM's end of the control socket; 0: the system's */
};

_Noreturn void vmtool_die(const char *what);

/* Starts the VMM and boots; the answer comes as a message. */
void vmtool_boot(struct vmtool *t, const struct vmtool_boot *b);

/* Asks for a fork; `child` is where the child will be heard. */
void vmtool_fork(struct vmtool *t, struct vmtool *child);

/* Opens a stream to a port of the guest and waits until it is open: our end. */
int vmtool_connect(struct vmtool *t, uint32_t port);

/* Next message; the console is printed meanwhile when print is set. */
void vmtool_recv(struct vmtool *t, struct ctl_msg *m, int print);

/* Next message of that type; dies on CTL_EXITED. */
void vmtool_expect(struct vmtool *t, uint32_t type, struct ctl_msg *m);

void vmtool_print_console(struct vmtool *t);
