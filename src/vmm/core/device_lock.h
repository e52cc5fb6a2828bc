/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device lock of a machine: a mutex that the loop thread is not kept out of. A mutex goes to
 * whoever asks while it is free, so vCPUs that come back at once, as those of a guest that keeps
 * its disk busy do, would pass a waiting loop thread over for as long as they like. While that one
 * waits, vCPUs wait outside: each of them gets the lock at most once before it.
 *
 * A vCPU that waits outside has no need to be told of a kick: the loop thread, which parks it,
 * waits for the lock itself, and not for a vCPU.
 *
 * Thread: one loop thread, any number of vCPUs. fork: the child makes it anew; neither a vCPU nor
 * the loop thread is at the lock while the process forks.
 */
#pragma once

#include <pthread.h>
#include <stdint.h>

struct device_lock {
	pthread_mutex_t mutex;
	_Atomic uint32_t loop; /* what vCPUs wait outside for to be 0: a futex (device_lock.c) */
};

void device_lock_init(struct device_lock *l);

/* By the loop thread; by a vCPU's. */
void device_lock_loop(struct device_lock *l);
void device_lock_vcpu(struct device_lock *l);
void device_unlock(struct device_lock *l);
