/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes that VMMs leave behind. A VMM may make children of the daemon (that is how it is
 * forked), so one that was taken over can make some that it does not tell of, which have nothing to
 * do with its end. Where there are control groups they go with its group; here they are found
 * without: a child of ours that nobody knows, and that cannot be the answer to a fork that was
 * asked for.
 *
 * That it cannot be: no fork is open, or it is older than the oldest that is. So one that holds a
 * fork open protects what it makes meanwhile, for as long as a sandbox may take to get ready.
 *
 * The kernel lists children (CONFIG_PROC_CHILDREN); one may be missing in a list that is read while
 * another ends, and one may make the next while it is killed. So it is looked again until nothing
 * is found. What was there before the daemon (its program was started by one that had children) is
 * not touched: it is in a list that is made at the start. Nor is there a look where orphans of
 * others become our children (as process 1 of a container, or as a subreaper): they cannot be told
 * from what a VMM has left.
 */
#define _GNU_SOURCE
#include "daemon/limits.h"
#include "daemon/vmm_impl.h"
#include "lib/dir.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Of a start time in /proc/PID/stat; the same everywhere (USER_HZ). */
#define TICK_NS (SECOND_NS / 100)

/*
 * From the end of a VMM; then, while there is something, twice as long each time. While there are
 * VMMs it is looked every now and then in any case: one that was taken over need not end.
 */
#define SWEEP_NS      (SECOND_NS / 50)
#define SWEEP_MAX_NS  SECOND_NS
#define SWEEP_IDLE_NS (10 * SECOND_NS)

/* --- which there are --------------------------------------------------------------------- */

static bool children_add(struct strays *all, pid_t pid)
{
	if (all->n == all->room) {
		size_t room = all->room ? 2 * all->room : 256;
		struct stray *more = realloc(all->c, room * sizeof(*more));

		if (!more)
			return false;
		all->c = more;
		all->room = room;
	}
	all->c[all->n++] = (struct stray){.pid = pid};
	return true;
}

/* "12 345 " */
static bool children_read(struct strays *all, int fd)
{
	char text[4096];
	ssize_t n;
	pid_t pid = 0;

	while ((n = io_read_some(fd, text, sizeof(text))) > 0) {
		for (ssize_t i = 0; i < n; i++) {
			if (text[i] >= '0' && text[i] <= '9') {
				pid = pid * 10 + (text[i] - '0');
				continue;
			}
			if (pid && !children_add(all, pid))
				return false;
			pid = 0;
		}
	}
	return n == 0;
}

static int by_pid(const void *a, const void *b)
{
	const struct stray *x = a, *y = b;

	return (x->pid > y->pid) - (x->pid < y->pid);
}

/* Of all our threads. False: that cannot be told. */
static bool children_list(struct strays *all)
{
	DIR *tasks = opendir("/proc/self/task");
	const struct dirent *e;
	bool ok = tasks != NULL;
	int rc = 0;

	while (ok && (e = dir_next(tasks, &rc))) {
		char path[sizeof(e->d_name) + 16];
		_cleanup_fd int fd = -1;

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/children", e->d_name);
		fd = openat(dirfd(tasks), path, O_RDONLY | O_CLOEXEC);
		/* Another thread than the first may just have ended. */
		if (fd < 0 && errno == ENOENT && atoi(e->d_name) != getpid())
			continue;
		ok = fd >= 0 && children_read(all, fd);
	}
	if (tasks)
		closedir(tasks);
	ok = ok && rc == 0;
	if (ok && all->n)
		qsort(all->c, all->n, sizeof(*all->c), by_pid);
	return ok;
}

static struct stray *children_find(const struct strays *all, pid_t pid)
{
	const struct stray key = {.pid = pid};

	return all->n ? bsearch(&key, all->c, all->n, sizeof(key), by_pid) : NULL;
}

static void children_known(struct strays *all, pid_t pid)
{
	struct stray *c = children_find(all, pid);

	if (c)
		c->known = true;
}

/* --- which are nobody's ------------------------------------------------------------------ */

static uint64_t ticks_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return ((uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec) / TICK_NS;
}

void strays_asked(struct vmm *v)
{
	v->asked_ticks = ticks_now();
}

/* When it began; 0: that is not told (the process is hidden, or gone). */
static uint64_t started(pid_t pid)
{
	char path[32], text[1024];
	_cleanup_fd int fd = -1;
	const char *at;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : io_read_some(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	/* Field 22; the second one, the name, may have anything in it. */
	at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

/* When the oldest fork that is open was asked for; UINT64_MAX: there is none. */
static uint64_t oldest_ask(const struct vmm_host *h)
{
	uint64_t oldest = UINT64_MAX;

	list_for_each (parent, &h->vmms, struct vmm, link)
		list_for_each (v, &parent->forks, struct vmm, fork_link)
			if (v->fork_id && v->asked_ticks < oldest)
				oldest = v->asked_ticks;
	return oldest;
}

/* Whether it may be a child that a VMM has yet to tell of. */
static bool may_be_told_of(uint64_t began, uint64_t oldest)
{
	return oldest != UINT64_MAX && (began == 0 || began >= oldest);
}

/*
 * Whether it was there before the daemon. Its start tells it from another that has got its number;
 * where that is hidden, the number has to do. What the list missed (children_list()) may be told by
 * the time, but for the tick in which the daemon began.
 */
static bool was_before(const struct vmm_host *h, pid_t pid, uint64_t began)
{
	const struct stray *c = children_find(&h->before, pid);

	if (c && (!c->began || !began || c->began == began))
		return true;
	return began && began < h->began_ticks;
}

/* Only one of ours; it cannot become another's meanwhile, as nobody but us reaps it. */
static void stray_kill(pid_t pid)
{
	_cleanup_fd int fd = pidfd_open(pid, 0);
	siginfo_t si;

	if (fd >= 0 && waitid(P_PIDFD, (id_t)fd, &si, WEXITED | WNOHANG | WNOWAIT) == 0)
		pidfd_send_signal(fd, SIGKILL, NULL, 0);
}

unsigned int vmm_host_sweep(struct vmm_host *h)
{
	struct strays all = {0};
	uint64_t oldest = oldest_ask(h);
	unsigned int left = 0;

	if (h->no_sweep)
		return 0;
	if (!children_list(&all))
		all.n = 0;
	list_for_each (v, &h->vmms, struct vmm, link)
		children_known(&all, v->pid);
	list_for_each (v, &h->claims, struct vmm, link)
		children_known(&all, v->claim);
	for (size_t i = 0; i < all.n; i++) {
		pid_t pid = all.c[i].pid;
		uint64_t began = all.c[i].known ? 0 : started(pid);

		if (all.c[i].known || was_before(h, pid, began) ||
		    (h->others_own && h->others_own(h->others, pid)))
			continue;
		left++;
		if (!may_be_told_of(began, oldest))
			stray_kill(pid);
	}
	free(all.c);
	return left;
}

/* --- when it is looked ------------------------------------------------------------------- */

/* Nothing was found, or nothing has happened: the next look is a long way off. */
static void sweep_idle(struct vmm_host *h)
{
	h->sweep_ns = SWEEP_IDLE_NS;
	loop_timer_set(h->loop, &h->sweep, SWEEP_IDLE_NS);
}

static void on_sweep(struct loop_timer *t)
{
	struct vmm_host *h = t->arg;

	if (vmm_host_sweep(h) == 0) {
		if (!list_empty(&h->vmms))
			sweep_idle(h);
		return;
	}
	if (h->sweep_ns == SWEEP_IDLE_NS)
		h->sweep_ns = SWEEP_NS;
	loop_timer_set(h->loop, &h->sweep, h->sweep_ns);
	if (h->sweep_ns < SWEEP_MAX_NS)
		h->sweep_ns *= 2;
}

/* Whether a process that is nobody's child any more becomes ours. */
static bool adopts(void)
{
	int subreaper = 0;

	return getpid() == 1 || (prctl(PR_GET_CHILD_SUBREAPER, &subreaper) == 0 && subreaper);
}

void strays_init(struct vmm_host *h)
{
	h->sweep = (struct loop_timer){.fn = on_sweep, .arg = h};
	h->began_ticks = ticks_now();
	h->no_sweep = true;
	if (adopts()) {
		log_warn("orphans of other processes become children of this one (it is process 1, "
			 "or a subreaper): what a VMM that was taken over leaves behind cannot be "
			 "told from them, and is left alone");
		return;
	}
	if (!children_list(&h->before)) {
		log_warn("this kernel does not list a process's children: what a VMM that was "
			 "taken over leaves behind is not found");
		return;
	}
	for (size_t i = 0; i < h->before.n; i++)
		h->before.c[i].began = started(h->before.c[i].pid);
	h->no_sweep = false;
}

void strays_soon(struct vmm_host *h)
{
	if (h->no_sweep)
		return;
	/* Not while a look that is near is waited for: a run of ends would put it off for ever. */
	if (!loop_timer_armed(&h->sweep) || h->sweep_ns == SWEEP_IDLE_NS)
		loop_timer_set(h->loop, &h->sweep, SWEEP_NS);
	h->sweep_ns = SWEEP_NS;
}

void strays_watch(struct vmm_host *h)
{
	if (!h->no_sweep && !loop_timer_armed(&h->sweep))
		sweep_idle(h);
}

void vmm_host_stop(struct vmm_host *h)
{
	loop_timer_cancel(&h->sweep);
	free(h->before.c);
	h->before = (struct strays){0};
	h->no_sweep = true;
}

void strays_log(struct vmm_host *h, pid_t pid)
{
	uint64_t now = io_now_ns();

	if (h->stray_logged_ns && now - h->stray_logged_ns < SECOND_NS) {
		h->strays_unlogged++;
		return;
	}
	log_warn("a virtual machine's process that nobody told of has ended (pid %d; %u more since "
		 "the last such line)",
		 (int)pid, h->strays_unlogged);
	h->stray_logged_ns = now;
	h->strays_unlogged = 0;
}
