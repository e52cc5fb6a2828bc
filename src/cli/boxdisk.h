/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk of the emulated host that outlives it: the daemon's database, and
 * the layers of the sandboxes' disks while they live. A sparse file with an
 * ext4 file system that is far larger than what is in it; what is deleted
 * inside is discarded and gives its space back (qemu.c, box/rc).
 * fork: runs tools of e2fsprogs and waits for them. Call it with the state
 * directory locked.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <limits.h>
#include <stdint.h>

#define BOXDISK_MIN_GIB     1
#define BOXDISK_DEFAULT_GIB 64
#define BOXDISK_MAX_GIB     16384

/*
 * DIR/box-state.ext4 of this size: made when it is not there yet, grown when
 * it is smaller, never made smaller. Its path goes to out.
 */
__must_check int boxdisk_prepare(const char *dir, uint64_t gib, char out[PATH_MAX],
				 struct err *err);

/* Bytes that we may still write to the file system of a file. 0 or -errno. */
__must_check int boxdisk_free(const char *file, uint64_t *bytes);
/* Says so when the disk may get larger than there is room for. */
void boxdisk_tell_room(const char *file);
