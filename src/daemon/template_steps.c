/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest of a template is asked to do, one request after the other on
 * one stream: RENEW, the warm-up script if there is one, WARM, FREEZE. The
 * guest has not run foreign code yet, but its answers are checked like any.
 */
#include "daemon/agent_failure.h"
#include "daemon/renew.h"
#include "daemon/template.h"
#include "daemon/limits.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <string.h>

struct template_step {
	uint8_t request;
	const char *what; /* "... failed" */
};

static const struct template_step steps[] = {
	{FRAME_RENEW, "setting the guest's clock and names"},
	{FRAME_EXEC, "its warm-up script"},
	{FRAME_WARM, "starting the Python session"},
	{FRAME_FREEZE, "freezing its processes"},
	{0},
};

/* Sends as much of the script as fits. */
static void feed_script(struct template_vm *vm)
{
	const char *code = vm->t->spec.warmup;
	size_t len = strlen(code);

	while (vm->code_sent <= len) {
		size_t left = len - vm->code_sent, room = agent_room(vm->s);
		size_t n = left < room ? left : room;

		if (left && room == 0)
			return;
		if (n)
			agent_send(vm->s, FRAME_DATA_IN, code + vm->code_sent, n);
		vm->code_sent += n;
		if (vm->code_sent == len) {
			agent_send(vm->s, FRAME_END_IN, NULL, 0);
			vm->code_sent = len + 1;
		}
	}
}

static void step_send(struct template_vm *vm)
{
	static const char exec[] = "{\"language\":\"python\"}", none[] = "{}";

	switch (vm->step->request) {
	case FRAME_RENEW:
		if (renew_send(vm->s,
			       &(struct renew){.id = vm->id, .kind = "boot", .reseed = true}))
			template_failed(vm, "no randomness for the guest");
		break;
	case FRAME_EXEC:
		vm->state = TEMPLATE_WARMING;
		agent_send(vm->s, FRAME_EXEC, exec, sizeof(exec) - 1);
		feed_script(vm);
		break;
	default:
		vm->state = TEMPLATE_WARMING;
		agent_send(vm->s, vm->step->request, none, sizeof(none) - 1);
		break;
	}
}

/* On to what comes next. False: it was the last. */
static bool step_next(struct template_vm *vm)
{
	vm->step++;
	if (vm->step->request == FRAME_EXEC && !vm->t->spec.warmup)
		vm->step++;
	if (!vm->step->request) {
		template_frozen(vm);
		return false;
	}
	step_send(vm);
	return true;
}

/* Keeps the end of it. */
static void script_stderr(struct template_vm *vm, const struct frame *f)
{
	const uint8_t *p = f->payload;
	size_t len = f->len, keep;

	if (len > WARMUP_STDERR) {
		p += len - WARMUP_STDERR;
		len = WARMUP_STDERR;
	}
	keep = vm->warm_err_len < WARMUP_STDERR - len ? vm->warm_err_len : WARMUP_STDERR - len;
	memmove(vm->warm_err, vm->warm_err + vm->warm_err_len - keep, keep);
	memcpy(vm->warm_err + keep, p, len);
	vm->warm_err_len = keep + len;
	vm->warm_err[vm->warm_err_len] = '\0';
}

/* EXIT of the script. False: it failed. */
static bool script_ended(struct template_vm *vm, const struct frame *f)
{
	json_t *o = json_safe_load_few((const char *)f->payload, f->len, LIMIT_AGENT_VALUES, 0);
	const json_t *code = json_object_get(o, "exit_code");
	json_int_t n = json_is_integer(code) ? json_integer_value(code) : -1;
	char *end = vm->warm_err + vm->warm_err_len;

	json_decref(o);
	if (n == 0)
		return true;
	if (!o && json_safe_lacked()) {
		template_failed(vm, "the end of its warm-up script: %s", strerror(ENOMEM));
		return false;
	}
	while (end > vm->warm_err && (end[-1] == '\n' || end[-1] == ' '))
		*--end = '\0';
	template_failed(vm, "its warm-up script ended with status %d%s%s", (int)n,
			vm->warm_err[0] ? ": " : "", vm->warm_err);
	return false;
}

/* One frame. False: vm may have come to its end, or waits for no more frames. */
static bool step_frame(struct template_vm *vm, const struct frame *f)
{
	struct agent_failure why;
	bool script = vm->step->request == FRAME_EXEC;

	switch (f->type) {
	case FRAME_STDOUT:
	case FRAME_EVENT:
	case FRAME_EVENT_PART:
		if (script)
			return true;
		break;
	case FRAME_STDERR:
		if (script) {
			script_stderr(vm, f);
			return true;
		}
		break;
	case FRAME_EXIT:
		if (script)
			return script_ended(vm, f) && step_next(vm);
		break;
	case FRAME_OK:
		if (!script)
			return step_next(vm);
		break;
	case FRAME_ERROR:
		agent_failure_parse(f, &why);
		template_failed(vm, "%s failed: %s", vm->step->what, why.message);
		return false;
	default:
		break;
	}
	template_failed(vm, "%s failed: %s", vm->step->what, agent_error_text(-EPROTO));
	return false;
}

static void steps_on_stream(struct agent_stream *s)
{
	struct template_vm *vm = s->user;
	struct frame f;
	int rc;

	if (vm->step->request == FRAME_EXEC)
		feed_script(vm);
	while ((rc = agent_next(s, &f)) == 1)
		if (!step_frame(vm, &f))
			return;
	if (rc == 0)
		return;
	vmm_poll(&vm->vmm); /* its end has the better reason */
	if (vm->vmm.ctl.fd >= 0)
		template_failed(vm, "%s failed: %s", vm->step->what, agent_error_text(rc));
}

void template_steps_begin(struct template_vm *vm)
{
	struct err err = {0};

	vm->step = &steps[0];
	vm->s = agent_open(&vm->agent, steps_on_stream, vm, &err);
	if (!vm->s)
		template_failed(vm, "%s", err.msg);
	else
		step_send(vm);
}
