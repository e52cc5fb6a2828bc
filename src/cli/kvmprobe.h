/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does KVM really run a guest here? Some hosts open /dev/kvm and create VMs
 * whose processor never gets anywhere. The probe makes a VM of one page,
 * lets it execute three instructions in real mode, and checks that they did
 * what they say.
 *
 * fork: the probe runs in a child of its own, because a KVM_RUN that hangs
 * can only be ended by a signal; the child is killed at the time limit and
 * reaped before the call returns.
 */
#pragma once

#include <stddef.h>

/* 0 when the guest ran; else -errno. text says in plain words what happened. */
int kvmprobe_run(int time_limit_ms, char *text, size_t size);
