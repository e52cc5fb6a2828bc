/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock with nothing allowed: a second wall behind a seccomp filter. What
 * the process holds open already is not touched.
 *
 * Thread: landlock_deny() counts for the calling thread and for what it makes from then on.
 * fork: inherited, and cannot be given back.
 */
#pragma once

#include "lib/cleanup.h"

#include <stdbool.h>

/* Version of the kernel's Landlock; 0: it has none, or it is not turned on. */
int landlock_abi(void);

/*
 * From here on no path can be opened, made, changed, executed or removed, no TCP port bound, and,
 * unless `dials`, none connected to; nor, where the kernel's version has these, a device's ioctl
 * called on what was opened afterwards, an abstract UNIX socket of others connected to, or a
 * signal sent to others. Takes PR_SET_NO_NEW_PRIVS. The version that does it, 0 for none; or
 * -errno.
 */
__must_check int landlock_deny(bool dials);
