/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POST /v1/sandboxes: one from the pool, or a fork of the template's VM, for
 * which the request waits when it has to be made first.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/egress/grant.h"
#include "daemon/fields.h"
#include "daemon/limits.h"
#include "daemon/pool.h"
#include "daemon/reply.h"
#include "lib/io.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

struct create {
	struct request *r;
	struct template *t;
	struct template_size size;
	json_t *metadata;
	struct grant *grant; /* NULL: none */
	bool forkable;
	bool place;         /* in the registry, reserved and not the sandbox's yet */
	struct sandbox *sb; /* while it is being made */
	struct template_waiter waiter;
	struct sandbox_user user;
};

static void reply_create_failed(struct request *r, const char *reason, const char *console)
{
	char text[1600], hint[CONSOLE_TAIL_BYTES + 64];

	snprintf(text, sizeof(text), "the sandbox did not start: %s", reason);
	snprintf(hint, sizeof(hint), "end of the guest's console:\n%s", console);
	reply_error(r, 503, "create_failed", text, console[0] ? hint : NULL, NULL);
}

static void reply_template_failed(struct create *c, const char *reason, const char *console)
{
	struct request *r = c->r;
	char text[1600], hint[CONSOLE_TAIL_BYTES + 64];

	snprintf(text, sizeof(text), "template %s cannot be made ready: %s", c->t->spec.name,
		 reason);
	snprintf(hint, sizeof(hint), "end of the guest's console:\n%s", console);
	reply_error(r, 503, "template_failed", text, console[0] ? hint : NULL, NULL);
}

/* A sandbox has it by now, or none will: nothing is kept until the client has taken its answer. */
static void create_forget(struct create *c)
{
	if (c->place)
		registry_unreserve(&c->r->http->d->registry, 1);
	json_decref(c->metadata);
	grant_unref(c->grant);
	c->place = false;
	c->metadata = NULL;
	c->grant = NULL;
}

/* A sandbox for the client: it learns the id here. */
static void create_done(struct create *c, struct sandbox *sb)
{
	struct template_size own = template_own_size(c->t);

	create_forget(c);
	sb->ready_us = (io_now_ns() - c->r->start_ns) / 1000;
	if (sandbox_announce(sb) < 0) {
		reply_create_failed(c->r, sb->reason, "");
		return;
	}
	if (memcmp(&c->size, &own, sizeof(own)) == 0)
		c->t->pool[template_kind(c->forkable)].used = true;
	pool_kick(c->r->http->d);
	reply_json(c->r, 200, sandbox_json(sb, false));
	/* Without memory for the answer, or without a client, nobody would learn of it. */
	if (c->r->status != 200 || c->r->gone)
		sandbox_end(sb, true, "it could not be told of");
}

static void create_ready(struct sandbox *sb, void *arg)
{
	struct create *c = arg;

	sandbox_drop_user(&c->user);
	c->sb = NULL;
	create_done(c, sb);
}

static void create_ended(struct sandbox_user *u, const char *reason)
{
	struct create *c = u->arg;
	char console[CONSOLE_TAIL_BYTES];

	vmm_console_tail(&c->sb->vmm, console, sizeof(console), CONSOLE_TAIL_LINES);
	c->sb = NULL;
	reply_create_failed(c->r, reason, console);
}

static void create_end(struct request *r)
{
	struct create *c = r->state;

	template_drop_waiter(&c->waiter);
	if (c->sb) {
		/* Nobody knows its id: nobody could ever end it. */
		sandbox_drop_user(&c->user);
		sandbox_end(c->sb, true, "the client left before it was ready");
	}
	create_forget(c);
	free(c);
	pool_kick(r->http->d); /* it may have waited for this one's fork */
}

static const struct request_ops create_ops = {.end = create_end};

static void create_fork(struct create *c, struct template_vm *vm)
{
	struct sandbox_params p = sandbox_params_of_template(vm);

	p.owner = c->r->owner;
	p.metadata = c->metadata;
	p.grant = c->grant;
	p.forkable = c->forkable;
	c->sb = sandbox_new(c->r->http->d, &p, create_ready, c);
	c->place = c->place && !c->sb;
	create_forget(c);
	if (!c->sb) {
		reply_json(c->r, 500, NULL);
		return;
	}
	sandbox_add_user(c->sb, &c->user, create_ended, c);
	sandbox_start(c->sb);
}

static void create_template(struct template_waiter *w, struct template_vm *vm, const char *reason,
			    const char *console)
{
	struct create *c = w->arg;

	if (vm) {
		create_fork(c, vm);
		return;
	}
	create_forget(c);
	reply_template_failed(c, reason, console);
}

static bool create_from_pool(struct create *c)
{
	struct template_size own = template_own_size(c->t);
	struct sandbox *sb = NULL;

	/* Those of the pool have been renewed: without egress. */
	if (!c->grant && memcmp(&c->size, &own, sizeof(own)) == 0)
		sb = pool_take(c->t, c->forkable);
	if (!sb)
		return false;
	sandbox_count(sb, c->r->owner);
	c->place = false;
	json_decref(sb->metadata);
	sb->metadata = json_incref(c->metadata);
	create_done(c, sb);
	return true;
}

static void create_start(struct create *c)
{
	struct template_vm *vm;

	if (create_from_pool(c))
		return;
	c->waiter.fn = create_template;
	c->waiter.arg = c;
	vm = template_get(c->t, &c->size, c->r->owner, &c->waiter);
	if (vm)
		create_fork(c, vm);
}

/* --- the request ------------------------------------------------------------------------- */

static void reply_unknown_template(struct request *r, const char *name)
{
	struct templates *ts = &r->http->d->templates;
	char known[320] = "", text[480];
	size_t n = 0;

	for (size_t i = 0; i < ts->n && n < sizeof(known) - TEMPLATE_NAME_MAX - 8; i++)
		n += (size_t)snprintf(known + n, sizeof(known) - n, "%s%s", i ? ", " : "",
				      ts->all[i].spec.name);
	if (n >= sizeof(known) - TEMPLATE_NAME_MAX - 8)
		snprintf(known + n, sizeof(known) - n, ", ...");
	snprintf(text, sizeof(text), "unknown template \"%.64s\"; there %s: %s", name,
		 ts->n == 1 ? "is" : "are", known);
	reply_error(r, 400, "invalid_request", text,
		    "`podflare template ls` lists what is built, `make templates` or `podflare "
		    "template build` builds others; a daemon that runs sees new ones after its "
		    "next start",
		    "template");
}

/*
 * Memory that is promised and not there yet is a matter of luck, which is the operator's; more than
 * the host has is none: such a sandbox would end as soon as it used what it asked for. What a
 * template has for those that ask for nothing is the operator's, too.
 */
static bool create_fits(struct request *r, const json_t *body, json_int_t memory_mib)
{
	struct sysinfo host;
	uint64_t mib = UINT64_MAX;

	if (sysinfo(&host) == 0)
		mib = ((uint64_t)host.totalram * host.mem_unit) >> 20;
	if (!json_is_integer(json_object_get(body, "memory_mib")) || (uint64_t)memory_mib <= mib)
		return true;
	reply_invalid(r, "memory_mib",
		      "a sandbox of %" PRIu64 " MiB cannot be made: this host has %" PRIu64
		      " MiB of memory in all",
		      (uint64_t)memory_mib, mib);
	return false;
}

/* Values of the body, checked, but for its egress. False: answered. */
static bool create_params(struct request *r, json_t *body, struct create *c)
{
	static const char *const known[] = {"template", "memory_mib", "vcpus",    "disk_mib",
					    "egress",   "metadata",   "forkable", NULL};
	struct templates *ts = &r->http->d->templates;
	const char *name = NULL;
	json_int_t memory, vcpus, disk;
	json_t *metadata = NULL;

	if (!fields_only(r, body, known) || !fields_string(r, body, "template", &name, NULL))
		return false;
	c->t = name ? template_find(ts, name) : template_find(ts, "default");
	if (!c->t && !name)
		c->t = &ts->all[0];
	if (!c->t) {
		reply_unknown_template(r, name);
		return false;
	}
	memory = c->t->spec.memory_mib;
	vcpus = c->t->spec.vcpus;
	disk = c->t->spec.disk_mib;
	c->forkable = true;
	if (!fields_int(r, body, "memory_mib", LIMIT_MEMORY_MIN_MIB, LIMIT_MEMORY_MAX_MIB,
			&memory) ||
	    !create_fits(r, body, memory) ||
	    !fields_int(r, body, "vcpus", 1, LIMIT_VCPUS_MAX, &vcpus) ||
	    !fields_int(r, body, "disk_mib", LIMIT_DISK_MIN_MIB, LIMIT_DISK_MAX_MIB, &disk) ||
	    !fields_bool(r, body, "forkable", &c->forkable) ||
	    !fields_map(r, body, "metadata", LIMIT_METADATA, LIMIT_METADATA_BYTES, &metadata))
		return false;
	c->size = (struct template_size){(uint32_t)memory, (uint32_t)vcpus, (uint32_t)disk};
	c->metadata = metadata ? json_incref(metadata) : json_object();
	if (!c->metadata)
		reply_json(r, 500, NULL);
	return c->metadata != NULL;
}

/* A place for it. False: answered. */
static bool create_place(struct create *c)
{
	struct daemon *d = c->r->http->d;

	if (d->stopping)
		reply_error(c->r, 503, "stopping", "the daemon is stopping", NULL, NULL);
	else if (!registry_reserve(&d->registry, 1))
		reply_too_many_sandboxes(c->r);
	else
		c->place = true;
	return c->place;
}

void api_sandbox_create(struct request *r)
{
	json_t *body = fields_parse(r, true);
	struct create *c = body ? calloc(1, sizeof(*c)) : NULL;
	bool go;

	if (body && !c)
		reply_json(r, 500, NULL);
	if (c)
		c->r = r;
	/* An allowlist may be long: it is looked at when there is a place for who asks. */
	go = c && create_params(r, body, c) && create_place(c) &&
	     api_egress_grant(r, json_object_get(body, "egress"), &c->grant);
	api_egress_forget(r, body);
	if (go) {
		r->ops = &create_ops;
		r->state = c;
		create_start(c);
	} else if (c) {
		create_forget(c);
		free(c);
	}
}
