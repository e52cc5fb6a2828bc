/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One virtual processor: its descriptor, its kvm_run page and the thread that
 * runs it. The thread does KVM_RUN and dispatches exits through exit_handle();
 * it allocates nothing, logs nothing and never forks.
 *
 * Parking: vcpus_park() stops all threads outside the guest and outside every
 * lock, with no instruction half done, so that their state can be read; and
 * vcpus_unpark() lets them go on. A vCPU may be parked from the start. Those of a
 * leaf (struct machine) are never parked: no signal reaches their threads. A thread
 * whose machine has ended parks no more, and vcpus_park() says so at once.
 *
 * Thread: created by the loop thread; the loop thread touches a vCPU's
 * descriptor only before vcpu_start() and while it is parked.
 * fork: the descriptors are the parent's: the child forgets them (vcpu_forget())
 * and creates its own. The threads do not exist in the child, but what libc had made
 * for them does, stacks and descriptors alike, and nobody there would ever free it.
 * So each thread of the child takes the place of its namesake (struct vcpu_place)
 * and begins anew there; a chain of forks, however long, has one set of stacks.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct machine;
struct kvm_run;

/* Where the threads of a machine wait while it is parked. */
struct vcpu_park {
	pthread_mutex_t lock;
	pthread_cond_t parked_cond; /* a thread has parked, or will never */
	_Atomic int wanted;         /* what those that are parked wait for to be 0: a futex */
	unsigned int parked;        /* under the lock */
	bool ended;                 /* under the lock: a thread is gone */
};

/*
 * Of the thread that libc made for a vCPU of this number, maybe in a process that this one descends
 * from. Its thread-local memory has libc's descriptor of it in it.
 */
struct vcpu_place {
	void *thread_pointer; /* what %fs stands for */
	void *stack;          /* free from here downwards; NULL: there has been no such thread */
};

struct vcpu {
	struct machine *machine;
	unsigned int id;
	int fd;
	struct kvm_run *run;
	size_t run_size;
	struct vcpu_place place;
	_Atomic pid_t tid; /* of the thread; 0: it has not begun */
	_Atomic uint64_t exits;
};

/* Creates vCPU id in the machine's VM; it does not run yet. `place` stays as it is. */
__must_check int vcpu_create(struct vcpu *v, struct machine *m, unsigned int id, struct err *err);

/* Enters the guest: KVM_RUN of v->fd, 0 or -errno. What struct machine's `run` is by default. */
int vcpu_run(struct vcpu *v);

/*
 * Starts the thread, which enters its jail and then the guest; that of a leaf waits in between
 * until all of them and the loop's thread have come to machine->gate. There is no stop: a VM ends
 * with its process.
 */
__must_check int vcpu_start(struct vcpu *v, struct err *err);

/* Tells the guest's watchdogs, before it runs (on), that it was stopped. */
void vcpu_stood(const struct vcpu *v);

/* In a forked child: closes what belongs to the parent. */
void vcpu_forget(struct vcpu *v);

/*
 * Has the thread leave the guest for a moment, and look at what it is to do. Not in a leaf. The
 * loop's thread, after it has said what that is.
 */
void vcpu_kick(struct vcpu *v);

void vcpu_park_init(struct vcpu_park *p);

/* Installs the handler of the signal that gets a thread out of the guest. Once per process. */
void vcpu_install_kick(void);

/*
 * Parks all n threads: 0; -ESHUTDOWN when one of them has ended (vcpus_ended()), or -ETIMEDOUT when
 * one did not park within the deadline; then none stays parked. Not with the device lock held.
 */
__must_check int vcpus_park(struct vcpu_park *p, struct vcpu *v, unsigned int n,
			    uint64_t deadline_ns);
void vcpus_unpark(struct vcpu_park *p);

/* Before the threads are started: they park before they run the guest, until vcpus_unpark(). */
void vcpus_hold(struct vcpu_park *p);

/* On a vCPU's thread that ends: it is not to be waited for. Not with the device lock held. */
void vcpus_ended(struct vcpu_park *p);
