/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reserve file. Invariant: `have` bytes of it are allocated.
 */
#define _GNU_SOURCE
#include "daemon/reserve.h"
#include "daemon/limits.h"
#include "lib/io.h"
#include "lib/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/statvfs.h>

static void reserve_fill(struct reserve *r)
{
	struct statvfs fs;

	/* Not the last room there is: it would only be given up again. */
	if (fstatvfs(r->fd, &fs) == 0 &&
	    (uint64_t)fs.f_bavail * fs.f_frsize >= RESERVE_BYTES + RESERVE_BYTES / 2 &&
	    posix_fallocate(r->fd, 0, RESERVE_BYTES) == 0) {
		r->have = RESERVE_BYTES;
		return;
	}
	if (ftruncate(r->fd, (off_t)r->have) < 0)
		log_debug("the reserve file cannot be cut");
	loop_timer_set(r->loop, &r->timer, RESERVE_RETRY_NS);
}

static void reserve_on_timer(struct loop_timer *t)
{
	reserve_fill(t->arg);
}

/* What there is of it. One with holes, as it comes back from some backups, is none. */
static uint64_t reserve_real(int fd)
{
	struct stat st;

	if (io_fstat(fd, &st) < 0 || st.st_size > (off_t)RESERVE_BYTES ||
	    st.st_blocks * 512 < st.st_size)
		return 0;
	return (uint64_t)st.st_size;
}

void reserve_open(struct reserve *r, struct loop *loop, const char *dir)
{
	char path[4096];

	*r = (struct reserve){.loop = loop, .fd = -1};
	r->timer = (struct loop_timer){.fn = reserve_on_timer, .arg = r};
	if (snprintf(path, sizeof(path), "%s/reserve", dir) >= (int)sizeof(path))
		return;
	r->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (r->fd < 0) {
		log_warn("no reserve for the state directory: %s cannot be opened", path);
		return;
	}
	r->have = reserve_real(r->fd);
	if (r->have < RESERVE_BYTES)
		reserve_fill(r);
}

void reserve_close(struct reserve *r)
{
	if (r->loop)
		loop_timer_cancel(&r->timer);
	close_fd(&r->fd);
}

bool reserve_give(struct reserve *r, uint64_t stay)
{
	uint64_t rest = r->have > RESERVE_PIECE ? r->have - RESERVE_PIECE : 0;

	if (r->fd < 0 || r->have == 0 || rest < stay || ftruncate(r->fd, (off_t)rest) < 0)
		return false;
	if (r->have == RESERVE_BYTES)
		log_warn("no room in the state directory: its reserve is being used");
	r->have = rest;
	loop_timer_set(r->loop, &r->timer, RESERVE_RETRY_NS);
	return true;
}
