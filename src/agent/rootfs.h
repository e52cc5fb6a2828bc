/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the initramfs to the real root: read-only image with a writable layer
 * over it, the kernel's file systems, the agent's own files in /run/podflare.
 * Thread: boot only, in the order of declaration.
 */
#pragma once

#include "agent/agent.h"
#include "lib/err.h"

/*
 * Runs this program again, under that name, from a file whose pages are one huge page of the guest.
 * A copy of the machine has a fault for each page that it touches first, and touches some ninety of
 * the agent's code until it has renewed itself; one huge page that is never written to costs one,
 * as the host's memory is in huge pages, too, until a copy writes to a part of one. Returns on
 * failure only: -errno, and the agent can go on from where it is.
 */
int rootfs_run_huge(const char *name, struct err *err);
/* /proc, /sys and /dev in the initramfs. */
int rootfs_mount_kernel(struct err *err);
/* The root image on /dev/pmem0, with DAX if the kernel can. */
int rootfs_mount_image(struct err *err);
/* The sandbox's disk, formatted if it is empty. */
int rootfs_mount_disk(struct err *err);
/* The overlay of image and disk; fills *l. */
int rootfs_mount_overlay(struct layers *l, struct err *err);
/* /run, /dev/pts, /dev/shm, cgroups in the new root. */
int rootfs_mount_others(struct err *err);
/* The REPL's sources from the initramfs to /run/podflare/repl. */
int rootfs_copy_repl(struct err *err);
/* Makes the overlay the root directory and frees what the initramfs held. */
int rootfs_switch(struct err *err);
/*
 * Files in /etc that each sandbox has of its own (names, machine-id), mounted over with copies in
 * memory: every renewal writes them, and there that is no work for a disk's file system.
 */
int rootfs_bind_identity(struct err *err);
