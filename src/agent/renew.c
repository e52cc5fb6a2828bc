/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's part of a renewal. A copy of a running guest would otherwise draw
 * the same numbers as its origin, and who looks into the memory of one knows what the
 * other draws next: fresh bytes are mixed in and credited, and
 * RNDRESEEDCRNG makes the kernel use them at once instead of within minutes.
 */
#define _GNU_SOURCE
#include "agent/renew.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/random.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <time.h>

#define BOOT_ID "/proc/sys/kernel/random/boot_id"

static int renew_clock(int64_t ns, struct err *err)
{
	struct timespec ts = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

	return clock_settime(CLOCK_REALTIME, &ts) < 0 ? err_set(err, errno, "cannot set the clock")
						      : 0;
}

int renew_random(struct renew_kept *k, const uint8_t entropy[REQUEST_ENTROPY], struct err *err)
{
	union {
		struct rand_pool_info info;
		uint8_t room[sizeof(struct rand_pool_info) + REQUEST_ENTROPY];
	} pool = {.info = {.entropy_count = REQUEST_ENTROPY * 8, .buf_size = REQUEST_ENTROPY}};
	int rc = 0;

	if (k->random_fd < 0)
		k->random_fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	if (k->random_fd < 0)
		return err_set(err, errno, "cannot open /dev/urandom");
	memcpy(pool.room + offsetof(struct rand_pool_info, buf), entropy, REQUEST_ENTROPY);
	if (ioctl(k->random_fd, RNDADDENTROPY, &pool.info) < 0)
		rc = err_set(err, errno, "cannot add entropy");
	else if (ioctl(k->random_fd, RNDRESEEDCRNG, 0) < 0)
		rc = err_set(err, errno, "cannot reseed the random number generator");
	explicit_bzero(&pool, sizeof(pool));
	return rc;
}

int renew_kernel(struct renew_kept *k, const struct request_renew *r, struct err *err)
{
	int rc = renew_random(k, r->entropy, err);

	if (rc == 0)
		rc = renew_clock(r->realtime_ns, err);
	if (rc == 0 && sethostname(r->hostname, strlen(r->hostname)) < 0)
		rc = err_set(err, errno, "cannot set the host name");
	return rc;
}

/* Somebody has mounted or unmounted something since the last call, as far as one can tell. */
static bool renew_mounts_changed(struct renew_kept *k)
{
	struct pollfd p = {.events = POLLPRI};

	if (k->mounts_fd < 0)
		k->mounts_fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
	p.fd = k->mounts_fd;
	return p.fd < 0 || poll(&p, 1, 0) != 0;
}

int renew_boot_id(struct renew_kept *k, const char *run_dir, const struct request_renew *r,
		  struct err *err)
{
	char file[256], text[sizeof(r->boot_id) + 1];
	struct statfs sf;
	int rc;

	snprintf(file, sizeof(file), "%s/boot-id", run_dir);
	snprintf(text, sizeof(text), "%s\n", r->boot_id);
	/* Once mounted, the same file is written again: its size does not change. */
	rc = renew_write(run_dir, "boot-id", text);
	if (rc < 0)
		return err_set(err, -rc, "cannot write %s", file);
	if (k->has_boot_id && !renew_mounts_changed(k))
		return 0;
	if (statfs(BOOT_ID, &sf) < 0)
		return err_set(err, errno, "cannot look at " BOOT_ID);
	if (sf.f_type == PROC_SUPER_MAGIC && mount(file, BOOT_ID, NULL, MS_BIND, NULL) < 0)
		return err_set(err, errno, "cannot mount a file on " BOOT_ID);
	/* Changes count from here on, not that one. */
	(void)!renew_mounts_changed(k);
	k->has_boot_id = true;
	return 0;
}
