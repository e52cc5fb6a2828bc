/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Templates and their VMs. A template VM is booted once for each size that is
 * asked for, warmed up, its user processes frozen, and paused for ever:
 * sandboxes are forks of it.
 *
 *   LOADING  the root image is being read (image_loader.h)
 *   BOOTING  up to the answer to RENEW (kind "boot")
 *   WARMING  the warm-up script, the session, freezing, pausing, the rehearsal
 *   READY    can be forked
 *   FAILED   could not be made, or has died: made again at the next need
 *
 * VMs of a template's own size stay; of other sizes there are at most LIMIT_SIZED. Room is made by
 * one that nobody waits for any more, or that is idle, the least recently used one; first by those
 * of the owner who has the most (template_room.c).
 *
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/agent_client.h"
#include "daemon/ids.h"
#include "daemon/image_loader.h"
#include "daemon/limits.h"
#include "daemon/rehearsal.h"
#include "daemon/template_file.h"
#include "daemon/vmm_client.h"
#include "lib/list.h"

#include <jansson.h>

struct daemon;
struct template;
struct template_vm;
struct template_waiter;

enum template_state {
	TEMPLATE_LOADING,
	TEMPLATE_BOOTING,
	TEMPLATE_WARMING,
	TEMPLATE_READY,
	TEMPLATE_FAILED
};

struct template_size {
	uint32_t memory_mib, vcpus, disk_mib;
};

struct template_vm {
	struct list link; /* template->vms; first: overwritten when freed */
	struct template *t;
	struct template_size size;
	char id[SANDBOX_ID_LEN + 1]; /* of the process; no sandbox has it */
	enum template_state state;
	const char *owner; /* who asked for it first, as in struct request */
	uint64_t askers;   /* all who did: owners_bit() */
	bool process;      /* its VMM is not reaped yet */
	struct vmm vmm;
	struct agent agent;
	struct agent_stream *s;
	struct rehearsal rehearsal;
	const struct template_step *step; /* what the guest does now (template_steps.c) */
	size_t code_sent;                 /* of the warm-up script */
	char warm_err[WARMUP_STDERR + 1]; /* end of its stderr */
	size_t warm_err_len;
	struct list waiters;
	struct loop_timer deadline;
	uint64_t start_ns, used_ns, boot_ms;
	char reason[1400];             /* of the failure */
	char hint[CONSOLE_TAIL_BYTES]; /* end of the console then */
};

/* Told once, already unlinked: vm is READY, or NULL with the reason and the console's end. */
typedef void template_waiter_fn(struct template_waiter *w, struct template_vm *vm,
				const char *reason, const char *console);

struct template_waiter {
	struct list link;
	template_waiter_fn *fn;
	void *arg;
};

/* Of the sandboxes that are made of it: those that can be forked, and those that cannot. */
enum template_kind { TEMPLATE_FORKABLE, TEMPLATE_LEAF, TEMPLATE_KINDS };

static inline enum template_kind template_kind(bool forkable)
{
	return forkable ? TEMPLATE_FORKABLE : TEMPLATE_LEAF;
}

/* Ready forks of one kind (pool.c). */
struct template_pool {
	bool used; /* a sandbox of that kind and of the template's own size was made */
	struct list ready;
	unsigned int n;
};

struct template
{
	struct daemon *d;
	struct template_spec spec;
	struct root_image root; /* fd -1: not loaded */
	struct image_loader loader;
	struct list vms;

	struct template_pool pool[TEMPLATE_KINDS];
};

struct templates {
	struct template *all;
	size_t n;
};

/* Reads the metadata, and the image of the first one. */
int templates_init(struct templates *ts, struct daemon *d, struct err *err);
/* The first one's VM starts to boot. */
void templates_begin(struct templates *ts);
/* Ends all VMs; their processes are still to be reaped. */
void templates_stop(struct templates *ts);
void templates_free(struct templates *ts);

/* NULL: none of this name. */
struct template *template_find(struct templates *ts, const char *name);
struct template_size template_own_size(const struct template *t);

/*
 * The VM when it is READY; else NULL, and the waiter is told later (a failure
 * perhaps inside the call). owner: who asks; the string stays.
 */
struct template_vm *template_get(struct template *t, const struct template_size *size,
				 const char *owner, struct template_waiter *w);
/* Not to be told any more. Harmless when not linked. */
void template_drop_waiter(struct template_waiter *w);
/* The VM of the template's own size if it is READY, without making one. */
struct template_vm *template_ready(struct template *t);

/* Object of GET /v1/templates, with the sizes that the owner has asked for. New reference, NULL
 * without memory. */
json_t *template_json(const struct template *t, const char *owner);

/* The last step of making one (rehearsal.c). */
void template_rehearsed(struct template_vm *vm);

/* --- between template.c, templates.c, template_room.c and template_steps.c --------------- */

/* One of another size than its template's is to be made for this owner. NULL, or why not. */
const char *template_make_room(struct templates *ts, const char *owner);
/* It ends; nobody waits for it. */
void template_makes_room(struct template_vm *vm);

/* Whether it is of its template's own size. */
bool template_vm_is_own(const struct template_vm *vm);
/* It has no process, or the daemon ends. */
void template_vm_free(struct template_vm *vm);
/* The agent listens: RENEW and all that follows, up to template_frozen() or a failure. */
void template_steps_begin(struct template_vm *vm);
void template_frozen(struct template_vm *vm);
void template_failed(struct template_vm *vm, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
