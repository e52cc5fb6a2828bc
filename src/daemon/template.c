/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Template VMs: which there are, when they are made, and who waits for them.
 * Invariant: at most one VM of a size that is not FAILED; waiters only while
 * it is neither READY nor FAILED.
 */
#include "daemon/template.h"
#include "daemon/daemon.h"
#include "daemon/pool.h"
#include "lib/io.h"
#include "lib/log.h"
#include "proto/guest.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool size_equal(const struct template_size *a, const struct template_size *b)
{
	return a->memory_mib == b->memory_mib && a->vcpus == b->vcpus && a->disk_mib == b->disk_mib;
}

struct template_size template_own_size(const struct template *t)
{
	return (struct template_size){t->spec.memory_mib, t->spec.vcpus, t->spec.disk_mib};
}

bool template_vm_is_own(const struct template_vm *vm)
{
	struct template_size own = template_own_size(vm->t);

	return size_equal(&vm->size, &own);
}

static void template_log(const struct template_vm *vm, enum log_level level, const char *msg,
			 const char *reason)
{
	struct log_field f[8];
	size_t n = 0;

	f[n++] = LOG_STR("template", vm->t->spec.name);
	f[n++] = LOG_NUM("memory_mib", vm->size.memory_mib);
	f[n++] = LOG_NUM("vcpus", vm->size.vcpus);
	f[n++] = LOG_NUM("disk_mib", vm->size.disk_mib);
	f[n++] = LOG_NUM("vmm_pid", vm->vmm.pid);
	f[n++] = LOG_NUM("age_ms", (io_now_ns() - vm->start_ns) / 1000000);
	if (reason)
		f[n++] = LOG_STR("reason", reason);
	log_event(level, msg, f, n);
}

/* --- end --------------------------------------------------------------------------------- */

void template_vm_free(struct template_vm *vm)
{
	list_del(&vm->link);
	loop_defer_free(&vm->t->d->loop, vm);
}

/* One of the template's own size stays to be seen, until it is made again; others go. */
static void template_vm_drop(struct template_vm *vm)
{
	if (!vm->process && (!template_vm_is_own(vm) || !vm->reason[0]))
		template_vm_free(vm);
}

/* Its VM must go; nobody is told. */
static void template_vm_end(struct template_vm *vm)
{
	vm->state = TEMPLATE_FAILED;
	loop_timer_cancel(&vm->deadline);
	vm->s = NULL;
	rehearsal_drop(vm);
	agent_free(&vm->agent);
	if (vm->process)
		vmm_kill(&vm->vmm, true);
}

static void template_tell(struct template_vm *vm, struct template_vm *ready)
{
	while (!list_empty(&vm->waiters)) {
		struct template_waiter *w =
			list_entry(vm->waiters.next, struct template_waiter, link);

		list_del(&w->link);
		w->fn(w, ready, vm->reason, vm->hint);
	}
}

void template_failed(struct template_vm *vm, const char *fmt, ...)
{
	bool was_ready = vm->state == TEMPLATE_READY;
	va_list ap;

	if (vm->state == TEMPLATE_FAILED)
		return;
	va_start(ap, fmt);
	vsnprintf(vm->reason, sizeof(vm->reason), fmt, ap);
	va_end(ap);
	/* Parts of it may be the guest's words; it becomes JSON and log text. */
	for (char *c = vm->reason; *c; c++)
		if ((*c < ' ' || *c > '~') && *c != '\n')
			*c = '?';
	if (vm->process)
		vmm_console_tail(&vm->vmm, vm->hint, sizeof(vm->hint), CONSOLE_TAIL_LINES);
	template_log(vm, vm->t->d->stopping ? LOG_INFO : LOG_WARN,
		     was_ready ? "template ended" : "template failed", vm->reason);
	template_vm_end(vm);
	template_tell(vm, NULL);
	template_vm_drop(vm);
}

void template_drop_waiter(struct template_waiter *w)
{
	if (w->link.next)
		list_del(&w->link);
}

/* --- events of the VMM ------------------------------------------------------------------- */

static struct template_vm *template_of(struct vmm *v)
{
	return list_entry(v, struct template_vm, vmm);
}

static void template_on_status(struct vmm *v, uint32_t code)
{
	struct template_vm *vm = template_of(v);

	if (vm->state != TEMPLATE_BOOTING || vm->s)
		return;
	if (code == GUEST_STATUS_READY)
		template_steps_begin(vm);
	else if (code & GUEST_STATUS_FAIL)
		template_failed(vm, "the guest failed to start at step %u",
				code & ~GUEST_STATUS_FAIL);
}

static void template_on_refused(struct vmm *v, uint32_t id, int errnum)
{
	agent_refused(&template_of(v)->agent, id, errnum);
}

void template_frozen(struct template_vm *vm)
{
	int rc;

	/* Nothing of ours shall be in what is forked. */
	vm->s = NULL;
	agent_free(&vm->agent);
	rc = vmm_pause(&vm->vmm);
	if (rc < 0)
		template_failed(vm, "it cannot be paused: %s", strerror(-rc));
}

static void template_on_paused(struct vmm *v, int errnum, const char *text)
{
	struct template_vm *vm = template_of(v);

	if (vm->state != TEMPLATE_WARMING || vm->s)
		return;
	if (errnum) {
		template_failed(vm, "it cannot be paused: %s", text[0] ? text : strerror(errnum));
		return;
	}
	rehearsal_begin(vm);
}

static void template_on_learned(struct vmm *v, int errnum, const char *text, const uint64_t *pages)
{
	struct template_vm *vm = template_of(v);

	if (vm->state == TEMPLATE_WARMING)
		rehearsal_learned(vm, errnum, text, pages);
}

void template_rehearsed(struct template_vm *vm)
{
	if (vm->state != TEMPLATE_WARMING)
		return;
	loop_timer_cancel(&vm->deadline);
	vm->state = TEMPLATE_READY;
	vm->boot_ms = (io_now_ns() - vm->start_ns) / 1000000;
	vm->used_ns = io_now_ns();
	template_log(vm, LOG_INFO, "template ready", NULL);
	template_tell(vm, vm);
	pool_kick(vm->t->d);
}

static void template_on_ended(struct vmm *v, const char *reason)
{
	template_failed(template_of(v), "%s", reason);
}

static void template_on_reaped(struct vmm *v)
{
	struct template_vm *vm = template_of(v);

	vm->process = false;
	template_vm_drop(vm);
}

static const struct vmm_ops template_vmm_ops = {
	.status = template_on_status,
	.refused = template_on_refused,
	.paused = template_on_paused,
	.learned = template_on_learned,
	.ended = template_on_ended,
	.reaped = template_on_reaped,
};

/* --- making one -------------------------------------------------------------------------- */

static void template_on_deadline(struct loop_timer *t)
{
	struct template_vm *vm = t->arg;

	template_failed(vm, "it was not ready after %u s", vm->t->d->config.template_timeout_s);
}

static void template_boot(struct template_vm *vm)
{
	struct daemon *d = vm->t->d;
	struct err err = {0};
	struct vmm_params p = {
		.id = vm->id,
		.kernel_fd = d->image.kernel_fd,
		.initramfs_fd = d->image.initramfs_fd,
		.root_fd = vm->t->root.fd,
		.memory_mib = vm->size.memory_mib,
		.vcpus = vm->size.vcpus,
		.disk_mib = vm->size.disk_mib,
	};

	vm->state = TEMPLATE_BOOTING;
	vm->start_ns = io_now_ns();
	vm->vmm.ops = &template_vmm_ops;
	if (vmm_start(&vm->vmm, &d->vmms, &p, &err) < 0) {
		template_failed(vm, "%s", err.msg);
		return;
	}
	vm->process = true;
	loop_timer_set(&d->loop, &vm->deadline, d->config.template_timeout_s * SECOND_NS);
	template_log(vm, LOG_INFO, "template booting", NULL);
}

static void template_on_image(struct image_loader *l, void *arg)
{
	struct template *t = arg;

	if (l->rc == 0) {
		t->root = l->root;
		close_fd(&t->spec.image_fd);
	}
	list_for_each_safe (vm, &t->vms, struct template_vm, link) {
		if (vm->state != TEMPLATE_LOADING)
			continue;
		if (l->rc < 0)
			template_failed(vm, "%s", l->err.msg);
		else
			template_boot(vm);
	}
}

static void template_load(struct template *t, struct template_vm *vm)
{
	struct err err = {0};

	vm->state = TEMPLATE_LOADING;
	if (!t->loader.running &&
	    image_loader_start(&t->loader, &t->d->loop, t->spec.image_fd, t->spec.image_path,
			       template_on_image, t, &err) < 0)
		template_failed(vm, "%s", err.msg);
}

void template_makes_room(struct template_vm *vm)
{
	template_log(vm, LOG_INFO, "template makes room for another size", NULL);
	template_vm_end(vm);
	template_vm_drop(vm);
}

static struct template_vm *template_vm_new(struct template *t, const struct template_size *size,
					   const char *owner)
{
	struct template_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return NULL;
	vm->t = t;
	vm->size = *size;
	vm->owner = owner;
	vm->start_ns = vm->used_ns = io_now_ns();
	ids_make(vm->id);
	vm->deadline = (struct loop_timer){.fn = template_on_deadline, .arg = vm};
	list_init(&vm->waiters);
	agent_init(&vm->agent, &t->d->loop, &vm->vmm);
	list_add_tail(&t->vms, &vm->link);
	return vm;
}

/* The one of this size that lives or is being made. What has failed and is gone is dropped. */
static struct template_vm *template_lookup(struct template *t, const struct template_size *size)
{
	list_for_each_safe (vm, &t->vms, struct template_vm, link) {
		if (!size_equal(&vm->size, size))
			continue;
		if (vm->state != TEMPLATE_FAILED)
			return vm;
		vm->reason[0] = '\0'; /* freed when its process is reaped */
		if (!vm->process)
			template_vm_free(vm);
	}
	return NULL;
}

struct template_vm *template_get(struct template *t, const struct template_size *size,
				 const char *owner, struct template_waiter *w)
{
	struct template_size own = template_own_size(t);
	struct template_vm *vm = template_lookup(t, size);
	const char *none = NULL;

	list_init(&w->link);
	if (!vm) {
		if (!size_equal(size, &own))
			none = template_make_room(&t->d->templates, owner);
		vm = none ? NULL : template_vm_new(t, size, owner);
		if (!vm) {
			w->fn(w, NULL, none ? none : "out of memory", "");
			return NULL;
		}
		vm->askers = owners_bit(&t->d->owners, owner);
		list_add_tail(&vm->waiters, &w->link);
		if (t->root.fd < 0)
			template_load(t, vm);
		else
			template_boot(vm);
		return NULL;
	}
	vm->used_ns = io_now_ns();
	vm->askers |= owners_bit(&t->d->owners, owner);
	if (vm->state == TEMPLATE_READY)
		return vm;
	list_add_tail(&vm->waiters, &w->link);
	return NULL;
}

struct template_vm *template_ready(struct template *t)
{
	struct template_size own = template_own_size(t);

	list_for_each (vm, &t->vms, struct template_vm, link)
		if (vm->state == TEMPLATE_READY && size_equal(&vm->size, &own))
			return vm;
	return NULL;
}
