/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filter of system calls that QEMU gets from us (qemu_jail.h), beside its own (-sandbox). What
 * Landlock does not handle is refused here.
 */
#pragma once

#include "lib/cleanup.h"

#include <stdbool.h>

/* Takes PR_SET_NO_NEW_PRIVS. Unless it `dials`, nothing goes out, over TCP or otherwise. */
__must_check int qemu_filter(bool dials);
