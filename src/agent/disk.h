/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sandbox's disk: an empty block device becomes a file system and is
 * mounted. What lies on it lives exactly as long as the machine, for memory
 * and disk are copied and lost together; the choices follow from that.
 *
 * Format (mke2fs of the image itself, in milliseconds):
 * - ext4 without a journal: after a crash nobody mounts the disk again, and a
 *   journal would write everything of importance twice and wake up a thread;
 * - inode tables count as zeroed, the disk being empty: neither mke2fs nor a
 *   thread of the kernel writes them;
 * - no copies of the superblock, no room to grow, no 64-bit block numbers (up
 *   to 16 TiB without), no reserved blocks: nobody needs them;
 * - checksums of metadata stay: a block of another layer would be noticed.
 * Mount:
 * - discard: what is deleted gives its space on the host back;
 * - nobarrier, noauto_da_alloc: flushes keep order across a crash, see above; so fsync sends
 *   none (docs/architecture.md, Flushes);
 * - noinit_itable, no_prefetch_block_bitmaps: no thread in the background;
 * - noatime; errors=remount-ro, so that damage does not spread.
 *
 * Thread: boot only. fork: mke2fs runs as a child until disk_mount() returns.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

/*
 * Waits for the device, formats it if it is empty, and mounts it on target,
 * which it makes. image: root directory with /sbin/mke2fs and a /dev to mount
 * a devtmpfs on. A device with other contents is refused.
 */
__must_check int disk_mount(const char *dev, const char *image, const char *target,
			    struct err *err);
