/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare serve`: its settings, and its two ways to run. serve.c reads the
 * command line, applies the rules and chooses; in hardware mode it becomes
 * podflared by exec, in emulated mode serve_box() supervises the machine.
 */
#pragma once

#include "cli/addr.h"
#include "cli/egressfile.h"
#include "cli/host.h"
#include "cli/paths.h"
#include "cli/templates.h"
#include "cli/tsc.h"

struct serve {
	struct addr addr;
	enum host_mode mode; /* HOST_AUTO until it is decided */
	struct host_facts facts;
	struct paths paths;
	char state[PATH_MAX];
	uint64_t box_memory_mib; /* 0: choose */
	uint64_t box_disk_gib;
	struct templates templates;
	struct egressfile egress; /* the operator's configuration */
	char **daemon_args;       /* what came behind "--" */
	size_t ndaemon_args;
	uint64_t start_ns;
	struct tsc_reading tsc;
};

/* Runs the daemon in the emulated host until it ends or a signal comes: an enum cli_exit. */
int serve_box(struct serve *s);
