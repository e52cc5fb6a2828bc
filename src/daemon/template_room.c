/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which template VMs of other sizes than their template's there are at a time: LIMIT_SIZED, and who
 * makes room. Where there are several keys, a key has at most half of that in the making; and what
 * is taken from whom, is taken from the key that has the most.
 */
#include "daemon/daemon.h"
#include "daemon/template.h"

#include <string.h>

/* What there is of an owner, or of all (NULL). */
struct sized {
	unsigned int all, making, ending;
};

static bool is_making(const struct template_vm *vm)
{
	return vm->state != TEMPLATE_READY && vm->state != TEMPLATE_FAILED;
}

/* Whoever asked for it has left. */
static bool is_given_up(const struct template_vm *vm)
{
	return is_making(vm) && list_empty(&vm->waiters);
}

/* Nobody has anything of it at the moment. */
static bool may_go(const struct template_vm *vm)
{
	return is_given_up(vm) || (vm->state == TEMPLATE_READY && list_empty(&vm->vmm.forks));
}

static struct sized sized_of(const struct templates *ts, const char *owner)
{
	struct sized n = {0};

	for (size_t i = 0; i < ts->n; i++) {
		list_for_each (vm, &ts->all[i].vms, struct template_vm, link) {
			if (template_vm_is_own(vm) || (owner && strcmp(vm->owner, owner) != 0))
				continue;
			n.all += vm->state != TEMPLATE_FAILED;
			n.making += is_making(vm);
			n.ending += vm->state == TEMPLATE_FAILED && vm->process;
		}
	}
	return n;
}

/* Whether a goes rather than b, when it is this owner who needs the room. */
static bool goes_before(const struct templates *ts, const struct template_vm *a,
			const struct template_vm *b, const char *owner)
{
	unsigned int na = sized_of(ts, a->owner).all, nb = sized_of(ts, b->owner).all;
	bool a_own = strcmp(a->owner, owner) == 0, b_own = strcmp(b->owner, owner) == 0;

	if (is_given_up(a) != is_given_up(b))
		return is_given_up(a);
	if (na != nb)
		return na > nb;
	if (a_own != b_own)
		return a_own;
	return a->used_ns < b->used_ns;
}

/* The one that goes, of those that this owner gave up himself, or of all; NULL: none may. */
static struct template_vm *find_victim(struct templates *ts, const char *owner, bool own_boot)
{
	struct template_vm *best = NULL;

	for (size_t i = 0; i < ts->n; i++) {
		list_for_each (vm, &ts->all[i].vms, struct template_vm, link) {
			if (template_vm_is_own(vm) || !may_go(vm))
				continue;
			if (own_boot && (!is_given_up(vm) || strcmp(vm->owner, owner) != 0))
				continue;
			if (!best || goes_before(ts, vm, best, owner))
				best = vm;
		}
	}
	return best;
}

const char *template_make_room(struct templates *ts, const char *owner)
{
	const struct config *c = &ts->all[0].d->config;
	bool several = config_has_owners(c);
	unsigned int most = several ? LIMIT_SIZED / 2 : LIMIT_SIZED;
	struct sized own = sized_of(ts, owner);
	bool own_boot = own.making >= most;
	struct template_vm *victim;

	/* Those that were ended have their memory for some moments more. */
	if (own.ending >= most)
		return "too many templates of other sizes are being ended";
	if (!own_boot && sized_of(ts, NULL).all < LIMIT_SIZED)
		return NULL;
	victim = find_victim(ts, owner, own_boot);
	if (victim) {
		template_makes_room(victim);
		return NULL;
	}
	return own_boot && several ? "too many templates of other sizes are being made for this key"
				   : "too many templates of other sizes are being made";
}
