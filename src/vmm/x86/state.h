/* SPDX-License-Identifier: Apache-2.0 */
/*
 * State of a vCPU and of the VM's clock: taken out of one KVM VM and put into
 * another one on the same host. Used by fork; the structs hold what KVM's
 * ioctls gave, in memory only, never on disk.
 *
 * Order matters in both directions; the reasons stand beside the steps in
 * state.c.
 *
 * Thread: loop thread, with all vCPUs parked (save) or not started yet (load).
 * fork: the saved state is ordinary memory, which is how the child gets it.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

#define STATE_MAX_MSRS  256u
#define STATE_XSAVE_MAX 16384u

/* Which MSRs this host's KVM can save, found once with a real vCPU. */
struct msr_list {
	uint32_t count;
	uint32_t index[STATE_MAX_MSRS];
};

struct vcpu_state {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debug;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	uint64_t tsc_offset;
	uint32_t nmsrs;
	struct kvm_msr_entry msrs[STATE_MAX_MSRS];
	uint8_t xsave[STATE_XSAVE_MAX];
};

struct clock_state {
	struct kvm_clock_data clock;
	uint64_t host_tsc; /* at the moment of saving */
};

/* How time goes on in the new VM. */
enum time_policy {
	TIME_CONTINUES, /* as if nothing had happened: a fork of a running VM */
	TIME_STOOD,     /* no time passed since the save: a fork of a paused template */
};

/* Asks KVM which MSRs there are and keeps those that this vCPU lets us read. */
__must_check int msr_list_init(struct msr_list *l, int kvm_fd, int vcpu_fd, struct err *err);

__must_check int vcpu_state_save(struct vcpu_state *s, int vcpu_fd, const struct msr_list *msrs,
				 struct err *err);

/*
 * CPUID must be set on the vCPU already. tsc_shift is added to the TSC offset: the same for all
 * vCPUs of a VM (clock_state_load() gives it), or their TSCs would differ.
 */
__must_check int vcpu_state_load(const struct vcpu_state *s, int vcpu_fd, uint64_t tsc_shift,
				 struct err *err);

__must_check int clock_state_save(struct clock_state *c, int vm_fd, struct err *err);
__must_check int clock_state_load(const struct clock_state *c, int vm_fd, enum time_policy time,
				  uint64_t *tsc_shift, struct err *err);
