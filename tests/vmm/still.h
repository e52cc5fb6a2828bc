/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vCPUs that never enter the guest, for machines on hosts whose KVM can make a
 * VM and keep its state but not run it. Everything else about them is real:
 * threads, kicks, parking, and KVM_RUN when it is to return at once.
 */
#pragma once

#include "vmm/core/vcpu.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

/* For struct machine's `run`. */
static inline int still_run(struct vcpu *v)
{
	_Static_assert(offsetof(struct kvm_run, immediate_exit) < 4, "in the word waited for");

	if (v->run->immediate_exit)
		return vcpu_run(v);
	/* The kick sets immediate_exit first: the wait is refused then, or the signal ends it. */
	syscall(SYS_futex, v->run, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
	return -EINTR;
}
