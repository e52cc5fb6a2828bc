/* SPDX-License-Identifier: Apache-2.0 */
/*
 * podflare-vmm with vCPUs that stand still, and with faults made to order. The
 * same program, its main() included, with some of its functions replaced by the
 * linker; beside its control socket it has descriptor 4, a page shared with the
 * test (struct plan), which says
 *
 * - which of the calls below is to fail, counted in one process from now on, or that no vCPU's
 * thread can enter its jail;
 * - that the first vCPU does what a guest would do to the devices, or that all of them are busy
 *   (guest.h), or that the last one ends the machine when it is to park;
 * - that KVM can map memory ahead of the guest, and logs that pages 1 to 3 are written in the first
 *   moment of a rehearsal, 3, 9 and 10 in the second;
 * - that a copy's loop, when it looks into a ring of the guest's, makes a call that is not for a
 *   leaf's: so that one that is in its jail dies;
 * - that something is to be written to the disk before the next fork, so that its top
 *   is in use. Every child compares what its disk holds with what its ancestors wrote.
 */
#define _GNU_SOURCE
#include "guest.h"
#include "still.h"
#include "vmm/ctl.h"
#include "vmm/jail/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#define PLAN_FD 4

enum side { NOBODY, PARENT, CHILD, VCPUS };
enum { STANDS, SERVES, BUSY, ENDS };

/* Mirrored in conftest.py. */
struct plan {
	_Atomic uint32_t side;  /* whose calls fail: enum side */
	_Atomic uint32_t pid;   /* the parent */
	_Atomic uint32_t nth;   /* the call that fails, from 1 */
	_Atomic uint32_t error; /* its errno */
	_Atomic uint32_t count; /* calls so far */
	_Atomic uint32_t fired; /* one has failed */
	_Atomic uint32_t write; /* write to the disk before a fork */
	_Atomic uint32_t wrong; /* clusters that a child found changed; what guest.c found wrong */
	_Atomic uint32_t guest; /* what the vCPUs do */
	_Atomic uint32_t maps;  /* KVM can map ahead; 2: and a signal comes at each piece */
	_Atomic uint32_t moments; /* of a rehearsal, so far */
	_Atomic uint32_t mapped;  /* pages that KVM was asked to map */
	_Atomic uint32_t rings;   /* a copy's loop that looks into a ring makes a call */
	_Atomic uint32_t looks;   /* of copies' loops into rings */
	_Atomic uint32_t entered; /* how often copies' vCPUs began to run the guest */
	char name[64];            /* of the call that failed */
};

static struct plan *plan;

/* What a VMM may not ask the kernel for in its jail; a fork's child has 0 for its own. */
static pid_t self;
static __thread bool main_thread;

/* Only the main thread's calls count: those of vCPU threads come when they like. */
static bool fails(const char *name)
{
	uint32_t side;

	if (!plan || !main_thread)
		return false; /* it has yet to be found */
	side = self == (pid_t)plan->pid ? PARENT : CHILD;

	if (plan->side != side || ++plan->count != plan->nth)
		return false;
	plan->fired = 1;
	snprintf(plan->name, sizeof(plan->name), "%s", name);
	errno = (int)plan->error;
	return true;
}

/* What the linker puts in place of each call (--wrap), and the call itself. */
#define FAULTY(type, failure, name, params, ...)                            \
	type __real_##name params;                                          \
	type __wrap_##name params;                                          \
	type __wrap_##name params                                           \
	{                                                                   \
		return fails(#name) ? failure : __real_##name(__VA_ARGS__); \
	}

FAULTY(int, -1, eventfd, (unsigned int n, int flags), n, flags)
FAULTY(int, -1, epoll_create1, (int flags), flags)
FAULTY(int, -1, epoll_ctl, (int ep, int op, int fd, struct epoll_event *e), ep, op, fd, e)
FAULTY(int, -1, close_range, (unsigned int first, unsigned int last, int flags), first, last, flags)
FAULTY(int, EAGAIN, pthread_create,
       (pthread_t * t, const pthread_attr_t *a, void *(*fn)(void *), void *arg), t, a, fn, arg)
FAULTY(void *, MAP_FAILED, mmap64, (void *at, size_t n, int prot, int flags, int fd, off64_t off),
       at, n, prot, flags, fd, off)

long __real_syscall(long n, ...);

/* Of a thread in a child. */
int __real_clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);
int __wrap_clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);
int __wrap_clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	const struct timespec t = {.tv_nsec = 20000000};
	const int word = 0;
	void *a[3];
	va_list ap;

	va_start(ap, arg);
	for (int i = 0; i < 3; i++)
		a[i] = va_arg(ap, void *);
	va_end(ap);
	if (!fails("thread"))
		return __real_clone(fn, stack, flags, arg, a[0], a[1], a[2]);
	/* Those that are there already get as far as they can. */
	__real_syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
	errno = (int)plan->error;
	return -1;
}

/* What a KVM answers that can map ahead, where the real one has answered rc. */
static int mapping_ioctl(unsigned long req, const void *arg, int rc)
{
	const struct kvm_dirty_log *log = arg;
	const struct vm_pre_fault *range = arg;

	if (req == KVM_CHECK_EXTENSION && (uintptr_t)arg == VM_CAP_PRE_FAULT_MEMORY)
		return 1;
	if (req == KVM_GET_DIRTY_LOG && rc == 0)
		*(uint64_t *)log->dirty_bitmap |= plan->moments++ ? 1u << 3 | 3u << 9 : 7u << 1;
	if (req != VM_PRE_FAULT_MEMORY)
		return rc;
	plan->mapped += (uint32_t)(range->size / 4096);
	plan->wrong += main_thread; /* KVM_RUN holds the vCPU: it would wait for the guest */
	if (plan->maps == 1)
		return 0;
	errno = EINTR;
	return -1;
}

int __real_ioctl(int fd, unsigned long req, ...);
int __wrap_ioctl(int fd, unsigned long req, ...);
int __wrap_ioctl(int fd, unsigned long req, ...)
{
	char name[32];
	va_list ap;
	void *arg;
	int rc;

	va_start(ap, req);
	arg = va_arg(ap, void *);
	va_end(ap);
	snprintf(name, sizeof(name), "ioctl %#lx", req & 0xffff);
	if (fails(name))
		return -1;
	rc = __real_ioctl(fd, req, arg);
	return plan && plan->maps ? mapping_ioctl(req, arg, rc) : rc;
}

/* The VMM's raw calls: the fork, fstat(), a vCPU's filter. */
long __wrap_syscall(long n, ...);
long __wrap_syscall(long n, ...)
{
	const long call = n;
	long a[5];
	va_list ap;

	va_start(ap, n);
	for (int i = 0; i < 5; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if ((n == SYS_clone && fails("clone")) || (n == SYS_fstat && fails("fstat")) ||
	    (n == SYS_seccomp && fails("seccomp")))
		return -1;
	if (n == SYS_seccomp && !main_thread && plan->side == VCPUS) {
		plan->fired = 1;
		errno = (int)plan->error;
		return -1;
	}
	n = __real_syscall(call, a[0], a[1], a[2], a[3], a[4], 0L);
	if (call == SYS_clone && n == 0)
		self = 0;
	return n;
}

int __real_virtq_peek(struct virtq *q, struct virtq_chain *ch);
int __wrap_virtq_peek(struct virtq *q, struct virtq_chain *ch);
int __wrap_virtq_peek(struct virtq *q, struct virtq_chain *ch)
{
	if (main_thread && self == 0) {
		plan->looks++;
		if (plan->rings)
			__real_syscall(SYS_gettid);
	}
	return __real_virtq_peek(q, ch);
}

/* Cluster i of the disk holds bytes of value i; the next free one is filled. */
static void write_more(struct layers *l)
{
	static uint8_t data[LAYERS_CLUSTER];
	uint32_t next = l->used;
	struct iovec v = {data, sizeof(data)};

	memset(data, (int)(next + 1), sizeof(data));
	if (layers_write(l, (uint64_t)next * LAYERS_CLUSTER, &v, 1) < 0)
		plan->wrong++;
}

static void compare(struct layers *l)
{
	static uint8_t data[LAYERS_CLUSTER];

	for (uint32_t i = 0; plan->guest != BUSY && i < l->used; i++) {
		struct iovec v = {data, sizeof(data)};

		if (layers_read(l, (uint64_t)i * LAYERS_CLUSTER, &v, 1) < 0 ||
		    data[0] != (uint8_t)(i + 1) || memcmp(data, data + 1, sizeof(data) - 1) != 0)
			plan->wrong++;
	}
}

int __real_machine_disk_make_room(struct machine *m, struct err *err);
int __wrap_machine_disk_make_room(struct machine *m, struct err *err);
int __wrap_machine_disk_make_room(struct machine *m, struct err *err)
{
	if (plan->write)
		write_more(&m->disk.layers);
	return __real_machine_disk_make_room(m, err);
}

int __real_machine_disk_fork_child(struct machine *m, struct layer_fds top, struct err *err);
int __wrap_machine_disk_fork_child(struct machine *m, struct layer_fds top, struct err *err);
int __wrap_machine_disk_fork_child(struct machine *m, struct layer_fds top, struct err *err)
{
	int rc = __real_machine_disk_fork_child(m, top, err);

	if (rc == 0)
		compare(&m->disk.layers);
	return rc;
}

static int run_first(struct vcpu *v)
{
	static struct guest guest;
	unsigned int wrong = guest.wrong;
	int rc = plan->guest == BUSY ? guest_busy(&guest, v) : guest_run(&guest, v);

	plan->wrong += guest.wrong - wrong;
	return rc;
}

static int run(struct vcpu *v)
{
	uint32_t guest = plan->guest;

	plan->entered += self == 0 && !v->run->immediate_exit;
	if (guest == ENDS && v->id + 1 == v->machine->nvcpus && v->run->immediate_exit) {
		v->run->exit_reason = KVM_EXIT_SHUTDOWN;
		return 0;
	}
	if (guest == BUSY && v->id)
		return guest_compute(v, &plan->wrong);
	return v->id == 0 && (guest == SERVES || guest == BUSY) ? run_first(v) : still_run(v);
}

void __real_ctl_init(struct ctl *c, struct loop *loop, int fd);
void __wrap_ctl_init(struct ctl *c, struct loop *loop, int fd);
void __wrap_ctl_init(struct ctl *c, struct loop *loop, int fd)
{
	__real_ctl_init(c, loop, fd);
	c->machine.run = run;
}

/* A build with sanitizers makes calls that no filter knows. */
static bool unjailed(void)
{
	return getenv("VMM_STILL_UNJAILED");
}

int __real_jail_enter(struct jail *j, bool without_namespaces, struct err *err);
int __wrap_jail_enter(struct jail *j, bool without_namespaces, struct err *err);
int __wrap_jail_enter(struct jail *j, bool without_namespaces, struct err *err)
{
	return unjailed() ? 0 : __real_jail_enter(j, without_namespaces, err);
}

int __real_jail_enter_thread(const struct jail *j, enum jail_kind kind);
int __wrap_jail_enter_thread(const struct jail *j, enum jail_kind kind);
int __wrap_jail_enter_thread(const struct jail *j, enum jail_kind kind)
{
	return unjailed() ? 0 : __real_jail_enter_thread(j, kind);
}

/* Before main(), which closes all that it does not know. */
__attribute__((constructor)) static void find_plan(void)
{
	void *page = mmap(NULL, sizeof(*plan), PROT_READ | PROT_WRITE, MAP_SHARED, PLAN_FD, 0);

	if (page == MAP_FAILED)
		_exit(2);
	self = getpid();
	main_thread = true;
	plan = page;
}
