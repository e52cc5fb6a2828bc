/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the files that disks of virtual machines are made of: without a name,
 * sparse, each as two descriptors (see enum ctl_boot_fd in proto/control.h).
 * Used by those who may open files; a VMM may not.
 *
 * Any thread. fork: no state.
 */
#pragma once

#include "lib/cleanup.h"

/* A new file in dir: *rw for both, *ro for reading; close-on-exec, the caller's. 0 or -errno. */
__must_check int layerfile_make(const char *dir, int *rw, int *ro);
