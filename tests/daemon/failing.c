/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loaded into podflared by LD_PRELOAD: allocations, and calls for which the kernel needs memory or
 * a place in a table, fail when a test says so. It says it in a file that both map ($FAILING,
 * struct orders; tests/daemon/failing.py is the other end). What failed last is there with its
 * callers.
 *
 * Any thread, while it runs what it was made for: a sanitizer cannot do without memory to begin
 * one. A fork's child, before it becomes another program, counts for nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#define EXPORT  __attribute__((visibility("default")))
#define CALLERS 40

/* What may fail. */
#define MEMORY 1u
#define KERNEL 2u

struct orders {
	_Atomic uint64_t kinds;  /* of them count; 0: nothing does */
	_Atomic uint64_t first;  /* the call that fails, from 1 on */
	_Atomic uint64_t last;   /* and those behind it up to this one */
	_Atomic uint64_t one_in; /* not 0: instead of that, at random one in so many */
	_Atomic uint64_t seen;   /* calls that counted */
	_Atomic uint64_t failed; /* those of them that failed */
	uint64_t callers[CALLERS];
};

static struct orders *orders;
static pid_t owner;
/* In a thread that was made: it runs its function. No memory is needed to look. */
static _Thread_local bool running __attribute__((tls_model("initial-exec")));

/* The sanitizer's, where there is one; else libc's. */
void *__interceptor_malloc(size_t) __attribute__((weak));
void *__interceptor_calloc(size_t, size_t) __attribute__((weak));
void *__interceptor_realloc(void *, size_t) __attribute__((weak));
void *__libc_malloc(size_t);
void __libc_free(void *);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("FAILING");
	void *here[1], *map;
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;

	if (fd < 0)
		return;
	map = mmap(NULL, sizeof(*orders), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (map == MAP_FAILED)
		abort();
	backtrace(here, 1); /* the first time it allocates */
	owner = getpid();
	orders = map;
}

/* splitmix64: each call has a number of its own. */
static uint64_t scrambled(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* Whether this call is to fail. */
static bool fails(unsigned int kind)
{
	struct orders *o = orders;
	void *callers[CALLERS] = {0};
	uint64_t n, one_in;

	if (!o || !(atomic_load(&o->kinds) & kind) || getpid() != owner ||
	    (gettid() != owner && !running))
		return false;
	n = atomic_fetch_add(&o->seen, 1) + 1;
	one_in = atomic_load(&o->one_in);
	if (one_in ? scrambled(n) % one_in != 0
		   : n < atomic_load(&o->first) || n > atomic_load(&o->last))
		return false;
	if (atomic_fetch_add(&o->failed, 1) == 0) {
		uint64_t kinds = atomic_exchange(&o->kinds, 0);

		backtrace(callers, CALLERS);
		for (int i = 0; i < CALLERS; i++)
			o->callers[i] = (uint64_t)(uintptr_t)callers[i];
		atomic_store(&o->kinds, kinds);
	}
	return true;
}

EXPORT void *malloc(size_t n)
{
	if (fails(MEMORY)) {
		errno = ENOMEM;
		return NULL;
	}
	return __interceptor_malloc ? __interceptor_malloc(n) : __libc_malloc(n);
}

EXPORT void *calloc(size_t n, size_t size)
{
	if (fails(MEMORY)) {
		errno = ENOMEM;
		return NULL;
	}
	return __interceptor_calloc ? __interceptor_calloc(n, size) : __libc_calloc(n, size);
}

EXPORT void *realloc(void *p, size_t n)
{
	if (n && fails(MEMORY)) {
		errno = ENOMEM;
		return NULL;
	}
	return __interceptor_realloc ? __interceptor_realloc(p, n) : __libc_realloc(p, n);
}

/* The next library's function of this name. */
#define NEXT(name, type, parameters) ((type(*) parameters)dlsym(RTLD_NEXT, #name))

/* A call that fails with this error, or is passed on. */
#define CALL(type, name, error, parameters, arguments)         \
	EXPORT type name parameters                            \
	{                                                      \
		if (fails(KERNEL)) {                           \
			errno = (error);                       \
			return -1;                             \
		}                                              \
		return NEXT(name, type, parameters) arguments; \
	}

CALL(int, socketpair, ENFILE, (int domain, int type, int protocol, int fds[2]),
     (domain, type, protocol, fds))
CALL(int, accept4, ENOMEM, (int fd, struct sockaddr *addr, socklen_t *len, int flags),
     (fd, addr, len, flags))
CALL(int, memfd_create, ENOMEM, (const char *name, unsigned int flags), (name, flags))
CALL(int, eventfd, ENFILE, (unsigned int n, int flags), (n, flags))
CALL(int, pidfd_open, ENOMEM, (pid_t pid, unsigned int flags), (pid, flags))
CALL(int, pipe2, ENFILE, (int fds[2], int flags), (fds, flags))
CALL(int, ftruncate, EDQUOT, (int fd, off_t size), (fd, size))
CALL(ssize_t, sendmsg, ENOBUFS, (int fd, const struct msghdr *m, int flags), (fd, m, flags))

/* To watch one more takes memory; the others never fail. */
EXPORT int epoll_ctl(int epfd, int op, int fd, struct epoll_event *e)
{
	if (op == EPOLL_CTL_ADD && fails(KERNEL)) {
		errno = ENOMEM;
		return -1;
	}
	return NEXT(epoll_ctl, int, (int, int, int, struct epoll_event *))(epfd, op, fd, e);
}

/* These return their error. */
EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *fa,
		       const posix_spawnattr_t *attr, char *const argv[], char *const envp[])
{
	if (fails(KERNEL))
		return EAGAIN;
	return NEXT(posix_spawn, int,
		    (pid_t *, const char *, const posix_spawn_file_actions_t *,
		     const posix_spawnattr_t *, char *const[], char *const[]))(pid, path, fa, attr,
									       argv, envp);
}

struct start {
	void *(*fn)(void *);
	void *arg;
};

static void *run(void *arg)
{
	struct start s = *(struct start *)arg;
	void *result;

	__libc_free(arg);
	running = true;
	result = s.fn(s.arg);
	running = false;
	return result;
}

EXPORT int pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	struct start *s = fails(KERNEL) ? NULL : __libc_malloc(sizeof(*s));
	int rc;

	if (!s)
		return EAGAIN;
	*s = (struct start){fn, arg};
	rc = NEXT(pthread_create, int,
		  (pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))(t, attr, run,
										    s);
	if (rc)
		__libc_free(s);
	return rc;
}

static int opened(const char *name, int dir, const char *path, int flags, mode_t mode)
{
	void *next;

	if (fails(KERNEL)) {
		errno = ENFILE;
		return -1;
	}
	next = dlsym(RTLD_NEXT, name);
	return name[4] ? ((int (*)(int, const char *, int, ...))next)(dir, path, flags, mode)
		       : ((int (*)(const char *, int, ...))next)(path, flags, mode);
}

#define MODE_OF(flags)                                   \
	({                                               \
		mode_t mode_ = 0;                        \
		va_list ap_;                             \
                                                         \
		if ((flags) & (O_CREAT | __O_TMPFILE)) { \
			va_start(ap_, flags);            \
			mode_ = va_arg(ap_, mode_t);     \
			va_end(ap_);                     \
		}                                        \
		mode_;                                   \
	})

EXPORT int open(const char *path, int flags, ...)
{
	return opened("open", AT_FDCWD, path, flags, MODE_OF(flags));
}

EXPORT int open64(const char *path, int flags, ...)
{
	return opened("open", AT_FDCWD, path, flags, MODE_OF(flags));
}

EXPORT int openat(int dir, const char *path, int flags, ...)
{
	return opened("openat", dir, path, flags, MODE_OF(flags));
}

EXPORT int openat64(int dir, const char *path, int flags, ...)
{
	return opened("openat", dir, path, flags, MODE_OF(flags));
}
