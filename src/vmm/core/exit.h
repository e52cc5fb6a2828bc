/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a vCPU does when it leaves the guest: port and memory-mapped accesses go
 * to their device under the device lock; everything else ends the machine.
 *
 * Thread: the vCPU's own. fork: no state.
 */
#pragma once

#include "proto/control.h"

struct machine;
struct vcpu;

/* Why a machine ended: enum ctl_exit and a sentence. */
struct exit_reason {
	uint32_t code;
	char text[256];
};

void exit_reason_set(struct exit_reason *r, uint32_t code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Handles the exit in v->run: 0 to go on, 1 when the machine ends (why is filled). */
int exit_handle(struct machine *m, struct vcpu *v, struct exit_reason *why);
