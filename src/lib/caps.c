/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capset(2) itself: libc has no function for it.
 */
#define _GNU_SOURCE
#include "lib/caps.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int caps_keep(uint64_t which)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0};

	if (which && syscall(SYS_capget, &head, data) < 0)
		return -errno;
	for (int i = 0; i < 2; i++) {
		data[i].permitted &= (uint32_t)(which >> 32 * i);
		data[i].effective = data[i].permitted;
		data[i].inheritable = 0;
	}
	return syscall(SYS_capset, &head, data) < 0 ? -errno : 0;
}

int caps_drop(void)
{
	return caps_keep(0);
}

int caps_pass(unsigned int which)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0}, *word = &data[which / 32];

	if (syscall(SYS_capget, &head, data) < 0)
		return -errno;
	if (!(word->permitted & 1u << which % 32))
		return 0;
	word->inheritable |= 1u << which % 32;
	if (syscall(SYS_capset, &head, data) < 0)
		return -errno;
	/* Where SECBIT_NO_CAP_AMBIENT_RAISE forbids this, root does without it. */
	(void)!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, which, 0, 0);
	return 0;
}
