/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which model-specific registers a guest may read and write: those of a list
 * with reasons (msr_filter.c), whatever CPUID shows and KVM knows. The others
 * are refused by KVM (#GP), as those that are not there. The list is for guests
 * alone: the VMM saves and loads registers as it likes. KVM exempts those of the
 * x2APIC (0x800 to 0x8ff).
 *
 * What it costs: nothing where KVM has the processor let a guest at a register
 * without an exit; a look at the list where there is an exit anyway.
 *
 * Thread: loop thread. fork: a filter belongs to a VM; each child sets its own.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Sets the filter of a VM. To be called first, before it has memory slots or vCPUs: KVM waits for a
 * grace period of a lock that these use, which then takes 20 us, and 20 ms after them.
 */
__must_check int msr_filter_set(int vm_fd, struct err *err);
