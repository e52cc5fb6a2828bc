/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the emulated host takes from this machine: memory, the disks that
 * hold its programs and templates. No state; fork: plain values.
 */
#pragma once

#include "cli/box.h"
#include "cli/host.h"
#include "cli/qemu.h"
#include "cli/templates.h"

#define BOXHOST_MEMORY_MIN     1536 /* MiB: below, a template and two sandboxes do not fit */
#define BOXHOST_MEMORY_DEFAULT 8192 /* most that is taken without being told */
#define BOXHOST_MEMORY_MAX     1048576u

/*
 * Memory of the machine in MiB. wanted != 0: that; else about half of what is
 * available, within the limits above. An error when this host has not as much.
 */
__must_check int boxhost_memory(const struct host_facts *f, uint64_t wanted, unsigned int *mib,
				struct err *err);

#define BOXHOST_TEMPLATES_MAX 16 /* each is a disk */

/* Disks of every emulated host: "programs", and the images of the templates as "t0", "t1"... */
__must_check int boxhost_add_disks(struct qemu_config *c, const struct templates *t,
				   struct err *err);

/*
 * What box-podflared tells the daemon about them: files t0.json, t1.json..., and "templates" with a
 * line "NAME tN" for each.
 */
__must_check int boxhost_give_templates(struct box *b, const struct templates *t, struct err *err);
