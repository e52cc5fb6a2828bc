/* SPDX-License-Identifier: Apache-2.0 */
/*
 * podflared as a whole: what its parts share. One thread with one event loop, in
 * which nothing blocks; beside it only threads that read images (image_loader.h). Made and taken
 * down by main.c. fork: VMM processes are started by posix_spawn; every descriptor is
 * close-on-exec, so that a VMM has only what it is given.
 */
#pragma once

#include "daemon/child_log.h"
#include "daemon/config.h"
#include "daemon/egress/host.h"
#include "daemon/held.h"
#include "daemon/http.h"
#include "daemon/image.h"
#include "daemon/owner.h"
#include "daemon/pool.h"
#include "daemon/registry.h"
#include "daemon/store.h"
#include "daemon/template.h"
#include "daemon/turns.h"
#include "daemon/vmm_client.h"
#include "lib/loop.h"

struct daemon {
	struct config config;
	struct loop loop;
	struct vmm_host vmms;
	struct cgroups cgroups;
	struct image image;
	struct templates templates;
	struct pool pool;
	struct store store;
	struct owners owners;
	struct registry registry;
	struct held held;         /* for all clients; of each owner: owners.held */
	struct held diffs, tests; /* places of comparisons, of tests of policies; likewise */
	struct egress_host egress;
	struct turns renewals;
	struct http http;
	struct child_log child_log;
	int oom_fd;    /* child.h */
	bool stopping; /* SIGTERM came: no new sandboxes */
};
