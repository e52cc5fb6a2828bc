/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VM fork. Parent: room for a layer of the disk, park, save, new top of the
 * disk, fork, unpark. Child: what devices have of the parent's goes, then every
 * other descriptor that is not on the list; then it waits for the daemon; then a new VM with memory
 * slots before anything else, vCPUs, clock, state; then the devices' queues, then threads. In a
 * leaf the threads come first, and wait, and then the jail in which none of this can be done again.
 * No lock is held across fork(2) and no other thread of the VMM allocates, so the child finds every
 * lock free and malloc intact.
 */
#define _GNU_SOURCE
#include "vmm/fork/fork.h"
#include "lib/io.h"
#include "vmm/jail/jail.h"
#include "vmm/x86/state.h"

#include <errno.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PARK_DEADLINE_NS 5000000000ull

static int machine_save(struct machine *m, struct err *err)
{
	int rc = clock_state_save(&m->saved_clock, m->kvm.fd, err);

	for (unsigned int i = 0; rc == 0 && i < m->nvcpus; i++)
		rc = vcpu_state_save(&m->saved[i], m->vcpus[i].fd, &m->msrs, err);
	return rc;
}

static int machine_park(struct machine *m, struct err *err)
{
	int rc = vcpus_park(&m->park, m->vcpus, m->nvcpus, PARK_DEADLINE_NS);

	if (rc == -ESHUTDOWN) {
		device_lock_loop(&m->lock);
		err_text(err, ESHUTDOWN, "the machine has ended: %s", m->end_reason.text);
		device_unlock(&m->lock);
		return rc;
	}
	return rc < 0 ? err_set(err, -rc, "a vCPU does not stop") : 0;
}

/* It would die of the attempt. */
static int machine_refuse_leaf(const struct machine *m, struct err *err)
{
	return m->leaf ? err_text(err, EPERM, "this machine was made not to be forked") : 0;
}

int machine_pause(struct machine *m, struct err *err)
{
	int rc = machine_refuse_leaf(m, err);

	if (rc < 0)
		return rc;
	if (m->paused)
		return 0;
	rc = machine_park(m, err);
	if (rc < 0)
		return rc;
	machine_disk_drain(m);
	rc = machine_save(m, err);
	if (rc < 0) {
		vcpus_unpark(&m->park);
		return rc;
	}
	m->paused = true;
	return 0;
}

/*
 * The raw call: fork() has no CLONE_PARENT. What libc would do besides (locks of
 * stdio and malloc, the cached thread id for recursive mutexes) is not needed:
 * only the loop thread allocates, and the VMM has neither stdio nor such mutexes.
 */
static pid_t fork_process(void)
{
	pid_t pid = (pid_t)syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);

	return pid < 0 ? -errno : pid;
}

/*
 * A rehearsal must not be asked to fork: its children would be logged as well, into the same
 * bitmap.
 */
static int machine_prepare(struct machine *m, enum ctl_fork_kind kind, struct err *err)
{
	bool rehearsal = kind == CTL_FORK_REHEARSAL;
	int rc = machine_refuse_leaf(m, err);

	if (rc < 0)
		return rc;
	if (kind >= CTL_FORK_KINDS)
		return err_text(err, EINVAL, "there is no such kind of fork");
	if (m->rehearsal || (rehearsal && !m->paused))
		return err_text(err, EINVAL, "a rehearsal is the child of a template and has none");
	return rehearsal ? hotsets_begin(&m->hot, &m->ram, err) : 0;
}

pid_t machine_fork(struct machine *m, struct layer_fds *top, enum ctl_fork_kind kind,
		   struct fork_times *t, struct err *err)
{
	bool live = !m->paused;
	uint64_t t0, t1;
	pid_t pid;
	int rc = machine_prepare(m, kind, err);

	if (rc == 0)
		rc = machine_disk_make_room(m, err);
	if (rc < 0)
		return rc;
	machine_disk_hold(m);
	t0 = io_now_ns();
	if (live)
		rc = machine_park(m, err);
	if (rc < 0) {
		machine_disk_release(m);
		return rc;
	}
	t1 = io_now_ns();
	if (live)
		rc = machine_save(m, err);
	if (rc == 0)
		rc = machine_disk_split(m, top, err);
	m->forked_ns = io_now_ns();
	pid = rc < 0 ? rc : fork_process();
	if (pid == 0) {
		m->rehearsal = kind == CTL_FORK_REHEARSAL;
		m->leaf = kind == CTL_FORK_LEAF;
		return 0;
	}
	if (live)
		vcpus_unpark(&m->park);
	machine_disk_release(m);
	if (rc < 0)
		return rc;
	/* If only the fork failed, the new top stays: the next fork finds it unused. */
	if (pid < 0)
		return err_set(err, -pid, "cannot fork the VMM");
	t->park_us = (t1 - t0) / 1000;
	t->save_us = (m->forked_ns - t1) / 1000;
	t->fork_us = (io_now_ns() - m->forked_ns) / 1000;
	machine_disk_settle(m);
	return pid;
}

uint64_t machine_fork_age_us(const struct machine *m)
{
	return (io_now_ns() - m->forked_ns) / 1000;
}

static int compare_fds(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* Closes every descriptor that is not in the list. */
static int close_all_but(int *keep, size_t n)
{
	unsigned int next = 0;

	qsort(keep, n, sizeof(keep[0]), compare_fds);
	for (size_t i = 0; i < n; i++) {
		unsigned int fd = (unsigned int)keep[i];

		if (keep[i] < 0 || fd < next)
			continue;
		if (fd > next && close_range(next, fd - 1, 0) < 0)
			return -errno;
		next = fd + 1;
	}
	return close_range(next, ~0u, 0) < 0 ? -errno : 0;
}

/*
 * Of what there is at this point: the standard ones, the message's, and of the machine's those that
 * a child goes on with.
 */
static int child_keep_fds(struct machine *m, const struct fork_child *c, struct err *err)
{
	int keep[11 + LAYERS_MAX], rc;
	size_t n = 0;

	for (int std = 0; std <= 2; std++)
		keep[n++] = std;
	keep[n++] = c->ctl_fd;
	keep[n++] = c->gate_fd;
	keep[n++] = m->kvm.kvm_fd;
	keep[n++] = m->loop->epfd;
	keep[n++] = m->loop->wakefd;
	keep[n++] = vsock_event_fd(&m->vsock);
	keep[n++] = m->vsock.again_fd;
	keep[n++] = m->disk.layers.top_rw;
	for (unsigned int i = 0; i < LAYERS_MAX; i++)
		keep[n++] = m->disk.layers.layer[i].fd;
	rc = close_all_but(keep, n);
	return rc < 0 ? err_set(err, -rc, "cannot close what the child must not have") : 0;
}

/* Everything that belongs to the parent's process; the descriptors are closed by the list. */
static void child_forget(struct machine *m)
{
	for (unsigned int i = 0; i < m->nvcpus; i++)
		vcpu_forget(&m->vcpus[i]);
	m->kvm.fd = m->handover_fd = -1;
	m->vsock_src.loop = NULL;
	m->handover.loop = NULL;
	device_lock_init(&m->lock);
	vcpu_park_init(&m->park);
	m->nnews = m->nstatus = 0;
	m->ended = 0;
	m->to_map = 0;
	if (!m->rehearsal)
		hotsets_end(&m->hot);
}

static int child_take_over(struct machine *m, const struct fork_child *c, struct err *err)
{
	int rc = console_replace(&m->console, c->console_fd, err);

	if (rc == 0)
		rc = machine_disk_fork_child(m, c->top, err);
	for (unsigned int i = 0; rc == 0 && i < MACHINE_DEVICES; i++) {
		rc = virtio_dev_fork_child(m->devices[i]);
		if (rc < 0)
			err_set(err, -rc, "device %u in the child", i);
	}
	return rc < 0 ? rc : child_keep_fds(m, c, err);
}

/*
 * Until the daemon lets it go on. What it holds of its parent's is closed by now, so nobody waits
 * for the end of a stream meanwhile; what it takes of the host's memory comes afterwards, and is
 * charged to the control group that the daemon has moved it to.
 */
static int child_pass_gate(const struct fork_child *c, struct err *err)
{
	char byte;
	ssize_t n = io_read_some(c->gate_fd, &byte, 1);
	int fd = c->gate_fd;

	close_fd(&fd);
	if (n == 1)
		return 0;
	return n < 0 ? err_set(err, (int)-n, "the gate of the child")
		     : err_text(err, ECANCELED, "the child was not let go on");
}

static int child_make_vm(struct machine *m, struct err *err)
{
	enum time_policy time = m->paused ? TIME_STOOD : TIME_CONTINUES;
	uint64_t tsc_shift = 0;
	int rc = kvm_vm_create(&m->kvm, &m->ram, &m->root, m->rehearsal, err);

	for (unsigned int i = 0; rc == 0 && i < m->nvcpus; i++) {
		rc = vcpu_create(&m->vcpus[i], m, i, err);
		if (rc == 0)
			rc = cpuid_set(&m->cpuid, m->vcpus[i].fd, i, m->nvcpus, err);
	}
	/* The clock before the vCPUs' MSRs: kvmclock's pages are filled from it. */
	if (rc == 0)
		rc = clock_state_load(&m->saved_clock, m->kvm.fd, time, &tsc_shift, err);
	for (unsigned int i = 0; rc == 0 && i < m->nvcpus; i++)
		rc = vcpu_state_load(&m->saved[i], m->vcpus[i].fd, tsc_shift, err);
	return rc;
}

static int child_make_gate(struct machine *m, struct err *err)
{
	int rc = m->leaf ? pthread_barrier_init(&m->gate, NULL, m->nvcpus + 1) : 0;

	return rc ? err_set(err, rc, "cannot make the gate of a leaf") : 0;
}

/* None runs the guest until all are there: they come to life parked. */
static int child_start_vcpus(struct machine *m, struct err *err)
{
	int rc = 0;

	vcpus_hold(&m->park);
	for (unsigned int i = 0; rc == 0 && i < m->nvcpus; i++) {
		vcpu_stood(&m->vcpus[i]);
		rc = vcpu_start(&m->vcpus[i], err);
	}
	if (rc == 0)
		vcpus_unpark(&m->park);
	return rc;
}

static int leaf_cannot_enter(int errnum, struct err *err)
{
	return errnum ? err_set(err, errnum, "cannot enter the jail of a leaf") : 0;
}

static int leaf_enter_jail(struct machine *m, struct err *err)
{
	return leaf_cannot_enter(m->jail ? -jail_enter_thread(m->jail, JAIL_LEAF) : 0, err);
}

/* The threads of vCPUs have gone to theirs by themselves. When all are in, the guest runs. */
static int leaf_open_gate(struct machine *m, struct err *err)
{
	pthread_barrier_wait(&m->gate); /* orders it */
	return leaf_cannot_enter(atomic_load_explicit(&m->gate_errnum, memory_order_relaxed), err);
}

/*
 * Rings are read here that a guest has left, hence by a leaf in its jail, in which no thread can be
 * started: those of its vCPUs are there before, and wait.
 */
static int child_run(struct machine *m, struct err *err)
{
	int rc = machine_init_handover(m, err);

	if (rc == 0)
		rc = child_make_gate(m, err);
	if (rc == 0)
		rc = machine_watch_vsock(m, err);
	m->paused = false;
	machine_map(m, CTL_HOTSET_READY);
	if (rc == 0 && m->leaf)
		rc = child_start_vcpus(m, err);
	if (rc == 0 && m->leaf)
		rc = leaf_enter_jail(m, err);
	/* After the local APICs have their state, or an interrupt would be overwritten. */
	for (unsigned int i = 0; rc == 0 && i < MACHINE_DEVICES; i++)
		virtio_dev_resume(m->devices[i]);
	if (rc == 0)
		rc = m->leaf ? leaf_open_gate(m, err) : child_start_vcpus(m, err);
	return rc;
}

int machine_fork_child(struct machine *m, const struct fork_child *c, struct err *err)
{
	int rc;

	child_forget(m);
	rc = child_take_over(m, c, err);
	if (rc == 0)
		rc = child_pass_gate(c, err);
	/* Before there is a VM whose view of memory would have to follow. */
	if (rc == 0)
		hotsets_populate(&m->hot, &m->ram, CTL_HOTSET_READY);
	if (rc == 0)
		rc = child_make_vm(m, err);
	if (rc == 0)
		rc = child_run(m, err);
	if (rc == 0)
		machine_disk_settle(m);
	return rc;
}
