/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vCPU threads. Each runs until the machine has ended; the loop thread then
 * ends the process. All signals but the kick are blocked in them; in those of a leaf the kick as
 * well, as they may not return from its handler.
 *
 * A kick needs both halves: immediate_exit for a thread on its way into
 * KVM_RUN, the signal for one that is inside.
 *
 * A thread is made by libc once, at boot, and by clone(2) in every generation of
 * children, on the stack and with the thread-local memory of the one it takes the
 * place of: for libc, whose memory the child inherited, it is that thread. What
 * libc had the kernel know of it (robust mutexes, rseq) is not told again, and not
 * needed. For this to be right no thread may be inside a function of libc that
 * keeps state when it is parked: it waits in a bare futex.
 */
#define _GNU_SOURCE
#include "vmm/core/vcpu.h"
#include "lib/io.h"
#include "vmm/core/exit.h"
#include "vmm/core/machine.h"
#include "vmm/jail/jail.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <sanitizer/asan_interface.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define KICK_SIGNAL SIGUSR1
/* More than a thread of a vCPU ever uses. */
#define STACK_USED (128u << 10)

int vcpu_create(struct vcpu *v, struct machine *m, unsigned int id, struct err *err)
{
	void *run;

	*v = (struct vcpu){.machine = m, .id = id, .fd = -1, .place = v->place};
	v->fd = ioctl(m->kvm.fd, KVM_CREATE_VCPU, id);
	if (v->fd < 0)
		return err_set(err, errno, "cannot create vCPU %u", id);
	v->run_size = (size_t)m->kvm.run_size;
	run = mmap(NULL, v->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (run == MAP_FAILED)
		return err_set(err, errno, "cannot map the run page of vCPU %u", id);
	/* A child of fork() must not see it: it would pin this VM. */
	madvise(run, v->run_size, MADV_DONTFORK);
	v->run = run;
	return 0;
}

void vcpu_forget(struct vcpu *v)
{
	/* The run page was not inherited (MADV_DONTFORK); the descriptor pins the parent's VM. */
	close_fd(&v->fd);
	v->run = NULL;
}

static void on_kick(int sig)
{
	(void)sig;
}

void vcpu_install_kick(void)
{
	struct sigaction sa = {.sa_handler = on_kick};
	sigset_t kick;

	sigaction(KICK_SIGNAL, &sa, NULL);
	sigemptyset(&kick);
	sigaddset(&kick, KICK_SIGNAL);
	pthread_sigmask(SIG_BLOCK, &kick, NULL);
}

void vcpu_park_init(struct vcpu_park *p)
{
	pthread_condattr_t attr;

	*p = (struct vcpu_park){0};
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->parked_cond, &attr);
	pthread_condattr_destroy(&attr);
}

/* A plain byte of the kernel's page, which two threads write. */
static void set_immediate_exit(struct vcpu *v, uint8_t on)
{
	__atomic_store_n(&v->run->immediate_exit, on, __ATOMIC_RELAXED);
}

/* A thread that has no number yet looks at what is wanted after it has got one. */
void vcpu_kick(struct vcpu *v)
{
	pid_t tid;

	/* Pairs with the fence in vcpu_enter(): of `tid`, too. */
	atomic_thread_fence(memory_order_seq_cst);
	tid = atomic_load_explicit(&v->tid, memory_order_relaxed);
	set_immediate_exit(v, 1);
	if (tid)
		tgkill(getpid(), tid, KICK_SIGNAL);
}

int vcpus_park(struct vcpu_park *p, struct vcpu *v, unsigned int n, uint64_t deadline_ns)
{
	uint64_t until = io_now_ns() + deadline_ns;
	struct timespec ts = {.tv_sec = (time_t)(until / 1000000000u),
			      .tv_nsec = (long)(until % 1000000000u)};
	int rc = 0;

	atomic_store_explicit(&p->wanted, 1, memory_order_release);
	for (unsigned int i = 0; i < n; i++)
		vcpu_kick(&v[i]);
	pthread_mutex_lock(&p->lock);
	while (p->parked < n && !p->ended && rc == 0)
		rc = pthread_cond_timedwait(&p->parked_cond, &p->lock, &ts);
	if (p->ended)
		rc = ESHUTDOWN;
	pthread_mutex_unlock(&p->lock);
	if (rc)
		vcpus_unpark(p);
	return -rc;
}

void vcpus_hold(struct vcpu_park *p)
{
	atomic_store_explicit(&p->wanted, 1, memory_order_release);
}

static long vcpu_futex(struct vcpu_park *p, int op, int value)
{
	return syscall(SYS_futex, &p->wanted, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

void vcpus_unpark(struct vcpu_park *p)
{
	pthread_mutex_lock(&p->lock);
	atomic_store_explicit(&p->wanted, 0, memory_order_release);
	pthread_mutex_unlock(&p->lock);
	vcpu_futex(p, FUTEX_WAKE, INT_MAX);
}

void vcpus_ended(struct vcpu_park *p)
{
	pthread_mutex_lock(&p->lock);
	p->ended = true;
	pthread_cond_signal(&p->parked_cond);
	pthread_mutex_unlock(&p->lock);
}

void vcpu_stood(const struct vcpu *v)
{
	/* Refused when the guest uses no kvmclock. */
	if (ioctl(v->fd, KVM_KVMCLOCK_CTRL, 0) < 0)
		return;
}

/* On the vCPU's thread, with no instruction half done: waits until parking is over. */
static void vcpu_wait_parked(struct vcpu *v)
{
	struct vcpu_park *p = &v->machine->park;

	pthread_mutex_lock(&p->lock);
	p->parked++;
	pthread_cond_signal(&p->parked_cond);
	/* Whether to go on is decided under the lock: who parks again finds it counted rightly. */
	while (atomic_load_explicit(&p->wanted, memory_order_relaxed)) {
		pthread_mutex_unlock(&p->lock);
		vcpu_futex(p, FUTEX_WAIT, 1);
		pthread_mutex_lock(&p->lock);
	}
	p->parked--;
	pthread_mutex_unlock(&p->lock);
	vcpu_stood(v);
}

int vcpu_run(struct vcpu *v)
{
	return ioctl(v->fd, KVM_RUN, 0) < 0 ? -errno : 0;
}

/* What the loop's thread wants in the guest's page tables; until it wants to park, which is dearer.
 */
static void vcpu_map(struct vcpu *v)
{
	struct machine *m = v->machine;
	uint32_t sets = 0;

	if (v->id == 0 && atomic_load_explicit(&m->to_map, memory_order_relaxed))
		sets = atomic_exchange_explicit(&m->to_map, 0, memory_order_relaxed);
	for (unsigned int i = 0; i < CTL_HOTSETS; i++)
		if (sets >> i & 1)
			hotsets_map(&m->hot, &m->ram, v->fd, (enum ctl_hotset)i, &m->park.wanted);
}

/*
 * One stay in the guest: as KVM_RUN. When the machine wants to park, the stay is
 * of no length: an access to a device that waits for its answer is completed,
 * for until then the registers are of an instruction half done, and *parking is
 * set.
 */
static int vcpu_enter(struct vcpu *v, bool *parking)
{
	/*
	 * immediate_exit is cleared before what is wanted is read, and who wants something sets
	 * them in the opposite order: whichever way the two meet, a wish is seen here or makes
	 * KVM_RUN return. The fence pairs with the one in vcpu_kick().
	 */
	set_immediate_exit(v, 0);
	atomic_thread_fence(memory_order_seq_cst);
	*parking = atomic_load_explicit(&v->machine->park.wanted, memory_order_acquire);
	if (*parking)
		set_immediate_exit(v, 1);
	else
		vcpu_map(v);
	return v->machine->run(v);
}

/*
 * The jail of its thread. A leaf's then waits until every other thread is in its own, too, and the
 * loop's has resumed the devices; when one could not, none runs the guest, and the loop's thread
 * tells of it.
 */
static int vcpu_enter_jail(struct machine *m)
{
	int rc = 0;

	if (m->jail)
		rc = jail_enter_thread(m->jail, m->leaf ? JAIL_LEAF_VCPU : JAIL_VCPU);
	if (!m->leaf)
		return rc;
	if (rc < 0)
		atomic_store_explicit(&m->gate_errnum, -rc, memory_order_relaxed);
	pthread_barrier_wait(&m->gate); /* orders it */
	return -atomic_load_explicit(&m->gate_errnum, memory_order_relaxed);
}

static void vcpu_live(struct vcpu *v)
{
	struct exit_reason why = {0};
	char name[16];
	int jailed;

	snprintf(name, sizeof(name), "vcpu%u", v->id);
	prctl(PR_SET_NAME, name);
	jailed = vcpu_enter_jail(v->machine);
	if (jailed < 0)
		exit_reason_set(&why, CTL_EXIT_ERROR,
				"the thread of vCPU %u cannot enter its jail: errno %d", v->id,
				-jailed);
	while (jailed == 0) {
		bool parking;
		int rc = vcpu_enter(v, &parking);

		if (rc == -EINTR || rc == -EAGAIN) {
			if (parking && rc == -EINTR)
				vcpu_wait_parked(v);
			continue;
		}
		if (rc < 0) {
			exit_reason_set(&why, CTL_EXIT_ERROR, "KVM_RUN of vCPU %u failed: errno %d",
					v->id, -rc);
			break;
		}
		atomic_fetch_add_explicit(&v->exits, 1, memory_order_relaxed);
		if (exit_handle(v->machine, v, &why))
			break;
	}
	machine_end(v->machine, &why);
	vcpus_ended(&v->machine->park);
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *v = arg;

	/* %fs:0 (psABI, thread-local storage). Nothing above this frame is ever returned to. */
	__asm__("mov %%fs:0, %0" : "=r"(v->place.thread_pointer));
	v->place.stack = __builtin_frame_address(0);
	atomic_store_explicit(&v->tid, gettid(), memory_order_relaxed);
	vcpu_live(v);
	return NULL;
}

/* In a child. Its number is in v->tid already. */
static int vcpu_thread_again(void *arg)
{
	vcpu_live(arg);
	return 0;
}

/* With a sanitizer: the marks of frames that its predecessor was in are no marks of this one's. */
static int vcpu_clone(struct vcpu *v)
{
	int rc;

	ASAN_UNPOISON_MEMORY_REGION((char *)v->place.stack - STACK_USED, STACK_USED);
	rc = clone(vcpu_thread_again, v->place.stack, JAIL_THREAD_FLAGS, v, &v->tid,
		   v->place.thread_pointer, &v->tid);
	return rc < 0 ? errno : 0;
}

static int vcpu_create_thread(struct vcpu *v)
{
	pthread_t t; /* nobody waits for its end */

	return pthread_create(&t, NULL, vcpu_thread, v);
}

int vcpu_start(struct vcpu *v, struct err *err)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	if (!v->machine->leaf)
		sigdelset(&all, KICK_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = v->place.stack ? vcpu_clone(v) : vcpu_create_thread(v);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc ? err_set(err, rc, "cannot start the thread of vCPU %u", v->id) : 0;
}
