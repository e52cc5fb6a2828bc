/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All templates: read when the daemon starts, found by name, shown, and ended.
 * What becomes of the VMs of one is template.c's.
 */
#include "daemon/template.h"
#include "daemon/daemon.h"

#include <errno.h>
#include <string.h>

int templates_init(struct templates *ts, struct daemon *d, struct err *err)
{
	struct template_spec *specs = NULL;
	size_t n;
	int rc = template_specs_load(&specs, &n, &d->config, err);

	if (rc < 0)
		return rc;
	ts->all = calloc(n, sizeof(*ts->all));
	if (!ts->all) {
		template_specs_free(specs, n);
		return err_set(err, ENOMEM, "templates");
	}
	for (size_t i = 0; i < n; i++) {
		struct template *t = &ts->all[i];

		t->d = d;
		t->spec = specs[i];
		t->root.fd = -1;
		list_init(&t->vms);
		for (enum template_kind k = 0; k < TEMPLATE_KINDS; k++)
			list_init(&t->pool[k].ready);
	}
	ts->n = n;
	free(specs); /* their strings and descriptors are the templates' now */
	rc = image_load_root(&ts->all[0].root, ts->all[0].spec.image_fd, ts->all[0].spec.image_path,
			     NULL, err);
	close_fd(&ts->all[0].spec.image_fd);
	return rc;
}

static void template_nobody(struct template_waiter *w, struct template_vm *vm, const char *reason,
			    const char *console)
{
	(void)w;
	(void)vm;
	(void)reason;
	(void)console;
}

void templates_begin(struct templates *ts)
{
	struct template_size own = template_own_size(&ts->all[0]);
	struct template_waiter nobody = {.fn = template_nobody};

	template_get(&ts->all[0], &own, OWNER_ANY, &nobody);
	template_drop_waiter(&nobody);
}

void templates_stop(struct templates *ts)
{
	for (size_t i = 0; i < ts->n; i++) {
		struct template *t = &ts->all[i];

		image_loader_stop(&t->loader);
		list_for_each_safe (vm, &t->vms, struct template_vm, link)
			template_failed(vm, "podflared is stopping");
	}
}

void templates_free(struct templates *ts)
{
	for (size_t i = 0; i < ts->n; i++) {
		struct template *t = &ts->all[i];

		image_loader_stop(&t->loader);
		list_for_each_safe (vm, &t->vms, struct template_vm, link)
			template_vm_free(vm);
		close_fd(&t->root.fd);
		template_spec_free(&t->spec);
	}
	free(ts->all);
	*ts = (struct templates){0};
}

struct template *template_find(struct templates *ts, const char *name)
{
	for (size_t i = 0; i < ts->n; i++)
		if (strcmp(ts->all[i].spec.name, name) == 0)
			return &ts->all[i];
	return NULL;
}

static json_t *template_vm_json(const struct template_vm *vm)
{
	static const char *const names[] = {
		[TEMPLATE_LOADING] = "booting", [TEMPLATE_BOOTING] = "booting",
		[TEMPLATE_WARMING] = "warming", [TEMPLATE_READY] = "ready",
		[TEMPLATE_FAILED] = "failed",
	};
	bool own = template_vm_is_own(vm), failed = vm->state == TEMPLATE_FAILED;
	const struct template_pool *pool = vm->t->pool;

	return json_pack("{s:I, s:I, s:I, s:s, s:I, s:I, s:I, s:s*}", "memory_mib",
			 (json_int_t)vm->size.memory_mib, "vcpus", (json_int_t)vm->size.vcpus,
			 "disk_mib", (json_int_t)vm->size.disk_mib, "state", names[vm->state],
			 "pool",
			 (json_int_t)(own ? pool[TEMPLATE_FORKABLE].n + pool[TEMPLATE_LEAF].n : 0),
			 "boot_ms", (json_int_t)vm->boot_ms, "hot_pages",
			 (json_int_t)(vm->rehearsal.pages & INT64_MAX), "reason",
			 failed ? vm->reason : NULL);
}

/* What somebody else has asked for is his own business. */
static bool template_vm_seen(const struct template_vm *vm, const char *owner)
{
	if (vm->state == TEMPLATE_FAILED && !vm->reason[0])
		return false;
	return template_vm_is_own(vm) || strcmp(owner, OWNER_ANY) == 0 ||
	       vm->askers & owners_bit(&vm->t->d->owners, owner);
}

json_t *template_json(const struct template *t, const char *owner)
{
	json_t *vms = json_array();
	bool ok = vms != NULL;

	list_for_each (vm, &t->vms, struct template_vm, link)
		if (template_vm_seen(vm, owner))
			ok = ok && json_array_append_new(vms, template_vm_json(vm)) == 0;
	if (!ok) {
		json_decref(vms);
		return NULL;
	}
	return json_pack("{s:s, s:s*, s:I, s:I, s:I, s:I, s:o}", "name", t->spec.name,
			 "description", t->spec.description, "default_memory_mib",
			 (json_int_t)t->spec.memory_mib, "default_vcpus", (json_int_t)t->spec.vcpus,
			 "default_disk_mib", (json_int_t)t->spec.disk_mib, "image_bytes",
			 (json_int_t)(t->root.fd < 0 ? t->spec.image_bytes : t->root.bytes), "vms",
			 vms);
}
