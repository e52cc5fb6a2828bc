/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Boot: makes a system of what the kernel starts PID 1 in. A list of named
 * steps; when one fails its number goes to the status port and the sentence to
 * the kernel log, which the serial console shows.
 * Thread: before the loop.
 */
#pragma once

#include "agent/agent.h"
#include "agent/user.h"
#include "lib/err.h"

#define BOOT_CGROUP_TOP "/sys/fs/cgroup"
#define BOOT_CGROUP     BOOT_CGROUP_TOP "/podflare"
#define BOOT_RUN        "/run/podflare"
#define BOOT_REPL       "/run/podflare/repl/repl.py"

struct boot {
	struct user user;
	struct layers layers;
	int listen_fd;
};

/* All steps. On failure it has been reported and the machine is switched off: does not return. */
void boot_run(struct boot *b);
/* A line in the kernel log, urgent enough to be shown on a quiet console. */
void boot_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Reports the failure of a numbered step and switches the machine off. */
void boot_fail(unsigned step, const char *name, const struct err *err) __attribute__((noreturn));
/* The number of the step that is not in the list: putting the agent together, and its end. */
#define BOOT_STEP_AGENT 90u
#define BOOT_STEP_LOOP  91u
