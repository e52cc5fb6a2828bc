/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The empty namespaces around a VMM: of network, System V IPC, host name and
 * mounts, with a root directory that has nothing in it (lib/emptyroot.h). An
 * ordinary user needs a user namespace around them, which a host may forbid; root
 * does without where it must. There is none of processes (docs/threat-model.md): a VMM's copies are
 * its siblings, which the first process of such a namespace may not have.
 *
 * Thread: spaces_enter() before there are others. fork: inherited.
 */
#pragma once

#include "lib/cleanup.h"

/* 0 or -errno: this host does not allow it, or not the root in them, and some of it may be done. */
__must_check int spaces_enter(void);

/* Whether a process of ours could, tried out in a child: 0 or -errno. Not with SIGCHLD ignored. */
__must_check int spaces_try(void);

/* What to do where it cannot: a sentence for the log and for `podflare doctor`. */
#define SPACES_ADVICE                                                                 \
	"allow user namespaces (sysctl user.max_user_namespaces, "                    \
	"kernel.unprivileged_userns_clone, "                                          \
	"kernel.apparmor_restrict_unprivileged_userns; in a container, its profiles " \
	"of seccomp and AppArmor), or accept VMMs without them: PODFLARE_WITHOUT_NAMESPACES=1"
