/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capset(2) itself: libc has no function for it.
 */
#define _GNU_SOURCE
#include "lib/caps.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

int caps_drop(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {0};

	return syscall(SYS_capset, &head, none) < 0 ? -errno : 0;
}
