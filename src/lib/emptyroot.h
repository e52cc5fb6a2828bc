/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A root directory with nothing in it, for a process that needs no path any
 * more: a file system of its own, read-only, in place of the host's whole tree,
 * which is taken out of the mount namespace.
 *
 * Thread: before there are others. fork: inherited, as the mount namespace is.
 */
#pragma once

#include "lib/cleanup.h"

/*
 * In a mount namespace of its own, with the right to mount there. name is what /proc/PID/mountinfo
 * shows. 0 or -errno: the host does not allow it, and the root is as it was, or half done.
 */
__must_check int emptyroot_enter(const char *name);
