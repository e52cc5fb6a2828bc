/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps of a rehearsal: fork and RENEW (as for any sandbox), record, one cell,
 * record, the end of it, and the template learns.
 */
#include "daemon/rehearsal.h"
#include "daemon/daemon.h"
#include "daemon/template.h"
#include "lib/log.h"

#include <string.h>

static void rehearsal_failed(struct template_vm *vm, const char *reason)
{
	log_warn("template %s: no rehearsal: %s", vm->t->spec.name, reason);
	rehearsal_drop(vm);
	vm->rehearsal.state = REHEARSAL_OVER;
	template_rehearsed(vm);
}

static void rehearsal_on_end(struct sandbox_user *u, const char *reason)
{
	struct template_vm *vm = u->arg;

	vm->rehearsal.sb = NULL;
	vm->rehearsal.s = NULL;
	rehearsal_failed(vm, reason);
}

static void rehearsal_record(struct template_vm *vm, enum ctl_hotset set)
{
	int rc;

	vm->rehearsal.set = set;
	rc = vmm_record(&vm->rehearsal.sb->vmm, set);
	if (rc < 0)
		rehearsal_failed(vm, strerror(-rc));
}

static void rehearsal_on_stream(struct agent_stream *s)
{
	struct template_vm *vm = s->user;
	struct frame f;
	int rc;

	while ((rc = agent_next(s, &f)) == 1) {
		if (f.type == FRAME_STDOUT || f.type == FRAME_STDERR || f.type == FRAME_EVENT ||
		    f.type == FRAME_EVENT_PART)
			continue;
		if (f.type != FRAME_EXIT) {
			rehearsal_failed(vm, "its cell was not run");
			return;
		}
		agent_release(s);
		vm->rehearsal.s = NULL;
		rehearsal_record(vm, CTL_HOTSET_CALL);
		return;
	}
	if (rc < 0 && !sandbox_is_ending(vm->rehearsal.sb))
		rehearsal_failed(vm, agent_error_text(rc));
}

static void rehearsal_call(struct template_vm *vm)
{
	static const char head[] = "{\"language\":\"python\"}", code[] = "print(1)";
	struct err err = {0};

	vm->rehearsal.s = agent_open(&vm->rehearsal.sb->agent, rehearsal_on_stream, vm, &err);
	if (!vm->rehearsal.s) {
		if (!sandbox_is_ending(vm->rehearsal.sb))
			rehearsal_failed(vm, err.msg);
		return;
	}
	agent_cork(vm->rehearsal.s);
	agent_send(vm->rehearsal.s, FRAME_EXEC, head, sizeof(head) - 1);
	agent_send(vm->rehearsal.s, FRAME_DATA_IN, code, sizeof(code) - 1);
	agent_send(vm->rehearsal.s, FRAME_END_IN, NULL, 0);
	agent_uncork(vm->rehearsal.s);
}

static void rehearsal_on_ready(struct sandbox *sb, void *arg)
{
	(void)sb;
	rehearsal_record(arg, CTL_HOTSET_READY);
}

static void rehearsal_on_recorded(struct sandbox *sb, void *arg, int errnum, const char *text)
{
	struct template_vm *vm = arg;
	int rc;

	if (sb != vm->rehearsal.sb)
		return;
	if (errnum) {
		rehearsal_failed(vm, text);
		return;
	}
	if (vm->rehearsal.set == CTL_HOTSET_READY) {
		rehearsal_call(vm);
		return;
	}
	rehearsal_drop(vm);
	vm->rehearsal.state = REHEARSAL_LEARNS;
	rc = vmm_learn(&vm->vmm);
	if (rc < 0)
		rehearsal_failed(vm, strerror(-rc));
}

void rehearsal_learned(struct template_vm *vm, int errnum, const char *text, const uint64_t *pages)
{
	struct log_field f[] = {
		LOG_STR("template", vm->t->spec.name),
		LOG_NUM("ready_pages", pages[CTL_HOTSET_READY]),
		LOG_NUM("call_pages", pages[CTL_HOTSET_CALL]),
	};

	if (vm->rehearsal.state != REHEARSAL_LEARNS)
		return; /* it was not asked */
	if (errnum) {
		rehearsal_failed(vm, text);
		return;
	}
	vm->rehearsal.state = REHEARSAL_OVER;
	vm->rehearsal.pages = pages[CTL_HOTSET_READY] + pages[CTL_HOTSET_CALL];
	log_event(LOG_INFO, "template rehearsed", f, ARRAY_SIZE(f));
	template_rehearsed(vm);
}

void rehearsal_begin(struct template_vm *vm)
{
	struct sandbox_params p = sandbox_params_of_template(vm);
	struct rehearsal *r = &vm->rehearsal;

	if (r->state != REHEARSAL_NONE)
		return; /* it told of its pause again */
	r->state = REHEARSAL_RUNS;
	p.pool = true;
	p.rehearsal = true;
	r->sb = sandbox_new(vm->t->d, &p, rehearsal_on_ready, vm);
	if (!r->sb) {
		rehearsal_failed(vm, "out of memory");
		return;
	}
	r->sb->on_recorded = rehearsal_on_recorded;
	sandbox_add_user(r->sb, &r->user, rehearsal_on_end, vm);
	sandbox_start(r->sb);
}

void rehearsal_drop(struct template_vm *vm)
{
	struct sandbox *sb = vm->rehearsal.sb;

	if (!sb)
		return;
	vm->rehearsal.sb = NULL;
	vm->rehearsal.s = NULL;
	sandbox_drop_user(&vm->rehearsal.user);
	sandbox_end(sb, true, "the rehearsal is over");
}
