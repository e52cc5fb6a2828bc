/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hot sets: the pages of guest RAM that every copy of a template writes to at
 * certain moments (while it becomes a sandbox, and at its first call). A copy
 * makes them its own before the guest touches them; otherwise each costs the
 * guest up to three faults: one to read, one to copy, and one because the copy
 * made KVM drop what it had just looked up. Where KVM can (KVM_PRE_FAULT_MEMORY, Linux
 * 6.11), they are then mapped into the guest as well, so that it does not fault at all;
 * what lies between two of them is mapped along, as much of it is read.
 *
 * They are learned from one copy, the rehearsal, whose writes KVM logs:
 *
 *   template   hotsets_begin(), fork
 *   rehearsal  hotsets_record() at the end of each moment
 *   template   hotsets_learn()
 *
 * The rehearsal runs no foreign code, and is the only copy that shares memory
 * with the template: a bitmap, until hotsets_learn(). Too many or too few pages
 * are a matter of speed only.
 *
 * Thread: the loop's, but for hotsets_map(), a vCPU's: a machine that learns is paused. fork: what
 * was learned is inherited; the bitmap by the rehearsal alone, others drop it with hotsets_end().
 */
#pragma once

#include "proto/control.h"
#include "vmm/core/gmem.h"
#include "vmm/core/vm.h"

/* Pages of one set; what lies behind is left to be faulted in as usual. */
#define HOTSET_MAX_PAGES 16384u

/*
 * Runs that lie no further apart are mapped in one piece. Of 0, 4 and 16 pages 4 were the fastest:
 * five copies of a template and a call in each (docs/performance.md).
 */
#define HOTSET_GAP 4u

struct hot_run {
	uint32_t page, count; /* page: of gmem->base */
};

struct hotset {
	struct hot_run *run; /* ascending */
	uint32_t nruns, pages;
};

struct hotsets {
	struct hotset set[CTL_HOTSETS];
	uint64_t *bits; /* CTL_HOTSETS bitmaps, shared; NULL unless a rehearsal is under way */
	size_t words;   /* of one bitmap */
};

/* Forgets what was learned before. */
__must_check int hotsets_begin(struct hotsets *h, const struct gmem *ram, struct err *err);
/* What was written since the last call, or since the fork, is that set. */
__must_check int hotsets_record(struct hotsets *h, const struct gmem *ram, const struct kvm_vm *vm,
				enum ctl_hotset set, struct err *err);
__must_check int hotsets_learn(struct hotsets *h, struct err *err);
/* The bitmap is not wanted (any more). */
void hotsets_end(struct hotsets *h);
/* Makes the pages of a set this process's own. What fails is faulted in later. */
void hotsets_populate(const struct hotsets *h, const struct gmem *ram, enum ctl_hotset set);
/*
 * Maps them into the guest, on the thread of the vCPU, if its KVM can. Ends early when *stop is not
 * zero; what is not mapped is faulted in later.
 */
void hotsets_map(const struct hotsets *h, const struct gmem *ram, int vcpu_fd, enum ctl_hotset set,
		 const _Atomic int *stop);
