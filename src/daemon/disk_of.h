/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk that a file system is on, for io.max: whole, as that knows no
 * partitions.
 *
 * Thread: any. fork: no state.
 */
#pragma once

#include "lib/err.h"

#include <sys/types.h>

/*
 * Of st_dev of a file. root stands before /sys ("" but for tests). -ENOTBLK: it is on none (a
 * tmpfs, an overlay, btrfs); -errno.
 */
int disk_of(const char *root, dev_t dev, unsigned int *major_nr, unsigned int *minor_nr,
	    struct err *err);
