/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of those who want the device lock. See device_lock.h. Only the loop thread raises and
 * lowers `loop`; a vCPU adds that there is somebody to be woken. What it says is of no importance
 * for who has the lock, which is the mutex's to decide.
 */
#define _GNU_SOURCE
#include "vmm/core/device_lock.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	NOT_WAITING,
	WAITING, /* the loop thread waits for the lock */
	KEPT_OUT /* and vCPUs wait outside */
};

static void lock_futex(struct device_lock *l, int op, unsigned int value)
{
	syscall(SYS_futex, &l->loop, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

void device_lock_init(struct device_lock *l)
{
	pthread_mutex_init(&l->mutex, NULL);
	atomic_store_explicit(&l->loop, NOT_WAITING, memory_order_relaxed);
}

void device_lock_loop(struct device_lock *l)
{
	if (pthread_mutex_trylock(&l->mutex) == 0)
		return;
	atomic_store_explicit(&l->loop, WAITING, memory_order_relaxed);
	pthread_mutex_lock(&l->mutex);
	if (atomic_exchange_explicit(&l->loop, NOT_WAITING, memory_order_relaxed) == KEPT_OUT)
		lock_futex(l, FUTEX_WAKE, INT_MAX);
}

/* Woken by the loop thread, or by a kick: either way it is looked at again. */
static void wait_outside(struct device_lock *l)
{
	uint32_t loop = atomic_load_explicit(&l->loop, memory_order_relaxed);

	while (loop != NOT_WAITING) {
		if (loop == KEPT_OUT ||
		    atomic_compare_exchange_strong_explicit(
			    &l->loop, &loop, KEPT_OUT, memory_order_relaxed, memory_order_relaxed))
			lock_futex(l, FUTEX_WAIT, KEPT_OUT);
		loop = atomic_load_explicit(&l->loop, memory_order_relaxed);
	}
}

void device_lock_vcpu(struct device_lock *l)
{
	wait_outside(l);
	pthread_mutex_lock(&l->mutex);
}

void device_unlock(struct device_lock *l)
{
	pthread_mutex_unlock(&l->mutex);
}
