/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent as one object: everything that lives as long as the program, so
 * that no module needs a file-level variable. Members are initialised by
 * agent_init() in the order in which they stand here.
 *
 * Thread: the agent has one. fork: children made by spawn_process() only make
 * system calls until they exec, they never look at this object again.
 */
#pragma once

#include "agent/alarm.h"
#include "agent/capture.h"
#include "agent/cgroup.h"
#include "agent/egress.h"
#include "agent/freeze.h"
#include "agent/kept.h"
#include "agent/reap.h"
#include "agent/renewal.h"
#include "agent/repl.h"
#include "agent/server.h"
#include "agent/user.h"
#include "lib/err.h"
#include "lib/loop.h"
#include "proto/frame.h"

#include <stdint.h>

/*
 * Directories of which the root is made, as O_PATH descriptors: they have no
 * names any more. -1 where there are none (some tests).
 */
struct layers {
	int image; /* the read-only image */
	int upper; /* what was changed since, in the form of overlayfs */
	int root;  /* both together */
};

struct agent {
	struct loop loop;
	struct loop_timer timer; /* see agent.c */
	struct list alarms;
	bool alarms_rest;
	struct user user;
	struct user root; /* for hooks and for commands that ask for it */
	struct layers layers;
	const char *node;
	struct reaper reaper;
	struct cgroups cgroups;
	struct egress egress;
	struct repl repl;     /* the default context */
	struct list contexts; /* of struct repl: that one, then others */
	unsigned ncontexts;
	struct server server;
	struct freezer freezer;
	struct renewal renewal;
	unsigned nexecs; /* calls that have begun; the number names their logs */
	const char *log_dir;
	struct capture_logs logs;
	struct kept_list kept;
	struct list leftovers; /* outputs of ended commands, see output.h */
	unsigned nleftovers;
	uint8_t scratch[FRAME_PAYLOAD_MAX]; /* for one read within one callback */
};

struct agent_config {
	const struct user *user;
	struct layers layers;
	const char *cgroup_path; /* cgroup v2 directory for user processes; NULL = none */
	const char *cgroup_top;  /* the group above all; NULL = nothing is outside of the former */
	const char *repl_script; /* what python3 runs as the REPL */
	const char *etc_dir;     /* "/etc" */
	const char *node;        /* interpreter of JavaScript: "/usr/bin/node" */
	const char *log_dir;     /* logs of calls with much output: "/tmp/.podflare" */
	const char *run_dir;     /* files for the user's programs: "/run/podflare" */
	int listen_fd;           /* listening socket; taken over */
	struct egress_config egress;
};

/* Puts the parts together. On failure the program ends; nothing is undone. */
__must_check int agent_init(struct agent *a, const struct agent_config *cfg, struct err *err);
/* Starts the REPL and serves until the loop ends, which it does only on an error of epoll. */
int agent_run(struct agent *a);

/*
 * Word of the protocol for an errno: the `code` of an ERROR frame. Every
 * refusal travels as a struct err whose num is chosen with this table in mind
 * (ENXIO stands for not_a_file, ESHUTDOWN for closed, ECHILD for ended).
 */
const char *agent_error_word(int num);
