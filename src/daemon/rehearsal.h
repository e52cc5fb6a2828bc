/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rehearsal of a template VM: the first copy of it, which nobody gets. It
 * becomes a sandbox and runs one cell, while KVM logs which pages of memory it
 * writes to; the template's VMM keeps the list, and copies made afterwards have
 * these pages ready before their guest needs them (vmm/core/hotset.h).
 *
 * A rehearsal that fails costs speed only: the template is used without.
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/agent_client.h"
#include "daemon/sandbox.h"

struct template_vm;

enum rehearsal_state { REHEARSAL_NONE, REHEARSAL_RUNS, REHEARSAL_LEARNS, REHEARSAL_OVER };

struct rehearsal {
	enum rehearsal_state state;
	struct sandbox *sb; /* not NULL: it runs */
	struct sandbox_user user;
	struct agent_stream *s;
	enum ctl_hotset set; /* is recorded next */
	uint64_t pages;      /* that were learned */
};

/* The VM has been paused, for the first time. template_rehearsed() follows, perhaps inside. */
void rehearsal_begin(struct template_vm *vm);
/* The VMM has answered vmm_learn(). */
void rehearsal_learned(struct template_vm *vm, int errnum, const char *text, const uint64_t *pages);
/* Ends it without a word. Harmless when there is none. */
void rehearsal_drop(struct template_vm *vm);
