/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loaded into podflared by LD_PRELOAD: a disk that is slow, and who waits for it. Shares a file
 * with the test ($SYNCS, struct syncs; tests/daemon/syncs.py is the other end).
 *
 * Any thread. A fork's child, before it becomes another program, counts for nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

struct syncs {
	_Atomic uint64_t on;
	_Atomic uint64_t delay_ms; /* of each */
	_Atomic uint64_t loop;     /* by the first thread, which is the loop's */
	_Atomic uint64_t others;
	_Atomic uint64_t slept_us; /* by the loop's */
};

static struct syncs *syncs;
static pid_t owner;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("SYNCS");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *map;

	if (fd < 0)
		return;
	map = mmap(NULL, sizeof(*syncs), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (map == MAP_FAILED)
		abort();
	owner = getpid();
	syncs = map;
}

static _Bool counts(void)
{
	return syncs && atomic_load(&syncs->on) && getpid() == owner;
}

static void synced(void)
{
	uint64_t ms;
	struct timespec ts;

	if (!counts())
		return;
	ms = atomic_load(&syncs->delay_ms);
	ts = (struct timespec){(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
	nanosleep(&ts, NULL);
	atomic_fetch_add(gettid() == owner ? &syncs->loop : &syncs->others, 1);
}

#define NEXT(name, type, parameters) ((type(*) parameters)dlsym(RTLD_NEXT, #name))

EXPORT int fsync(int fd)
{
	synced();
	return NEXT(fsync, int, (int))(fd);
}

EXPORT int fdatasync(int fd)
{
	synced();
	return NEXT(fdatasync, int, (int))(fd);
}

/* How SQLite waits for a lock. */
EXPORT int usleep(useconds_t us)
{
	if (counts() && gettid() == owner)
		atomic_fetch_add(&syncs->slept_us, us);
	return NEXT(usleep, int, (useconds_t))(us);
}
