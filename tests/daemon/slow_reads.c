/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loaded into podflared by LD_PRELOAD: a host whose storage takes a quarter of a second for each
 * large read.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define LARGE  (1u << 20)

EXPORT ssize_t pread64(int fd, void *buf, size_t len, off64_t off)
{
	const struct timespec quarter = {.tv_nsec = 250000000};

	if (len >= LARGE)
		nanosleep(&quarter, NULL);
	return syscall(SYS_pread64, fd, buf, len, off);
}

EXPORT ssize_t pread(int fd, void *buf, size_t len, off_t off)
{
	return pread64(fd, buf, len, off);
}
