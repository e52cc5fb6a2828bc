/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grant, state and records of a sandbox's egress.
 *
 * Invariants: without a grant there is no proxy, and the VMM was told to refuse; a
 * policy that a proxy has not answered is waited for by its changes only, never by
 * connections.
 */
#include "daemon/daemon.h"
#include "daemon/egress/audit_share.h"
#include "daemon/egress/egress_impl.h"
#include "daemon/exec.h"
#include "lib/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static struct egress_sandbox *egress_make(struct sandbox *sb)
{
	struct egress_sandbox *e = sb->egress ? sb->egress : calloc(1, sizeof(*e));

	if (e && !sb->egress) {
		e->sb = sb;
		list_init(&e->changes);
		sb->egress = e;
	}
	return e;
}

int egress_set(struct sandbox *sb, struct grant *g)
{
	struct egress_sandbox *e = g ? egress_make(sb) : NULL;

	if (!g)
		return 0;
	if (!e)
		return -ENOMEM;
	e->grant = grant_ref(g);
	return 0;
}

void egress_failed(struct egress_sandbox *e, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(e->reason, sizeof(e->reason), fmt, ap);
	va_end(ap);
	for (char *c = e->reason; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	log_warn("egress of %s has failed: %s", e->sb->id, e->reason);
}

/* --- getting ready ----------------------------------------------------------------------- */

bool egress_awaits_ca(const struct egress_sandbox *e)
{
	return e->grant && e->grant->intercept && !e->ca && e->proxy &&
	       e->proxy->answered < e->proxy->serial;
}

bool egress_prepare(struct sandbox *sb, void (*fn)(struct sandbox *sb))
{
	struct egress_sandbox *e = sb->egress;

	/* In vain: the agent is told without a CA, and of one when there is. */
	if (!e || !e->grant || !e->grant->intercept || e->ca || egress_proxy_need(e) < 0 ||
	    !egress_awaits_ca(e))
		return true;
	e->prepared = fn;
	return false;
}

char *egress_begin(struct sandbox *sb)
{
	struct egress_sandbox *e = sb->egress;
	char *text;

	if (!e || !e->grant)
		return NULL;
	vmm_egress(&sb->vmm, true);
	text = egress_agent_text(e, &e->asked_on, &e->asked_ca);
	if (!text)
		e->asked_on = e->asked_ca = false;
	return text;
}

void egress_ready(struct sandbox *sb)
{
	struct egress_sandbox *e = sb->egress;

	if (!e || e->tell_failure[0])
		return;
	e->told_on = e->asked_on;
	e->told_ca = e->asked_ca;
	e->known = true;
	egress_agent_tell(e); /* the CA may have come meanwhile */
}

/* --- changes ----------------------------------------------------------------------------- */

void egress_check(struct egress_sandbox *e)
{
	void (*prepared)(struct sandbox *) = e->prepared;

	if (prepared && !egress_awaits_ca(e)) {
		e->prepared = NULL;
		prepared(e->sb);
	}
	list_for_each_safe (c, &e->changes, struct egress_change, link) {
		if (c->policy && e->proxy && e->proxy->answered < c->policy)
			continue;
		c->policy = 0; /* of a proxy that is gone */
		if (!egress_agent_settled(e))
			continue;
		list_del(&c->link);
		c->done(c, e->tell_failure[0] ? e->tell_failure : NULL);
	}
}

static void begin_grant(struct egress_sandbox *e, bool was_on, struct egress_change *c)
{
	if (!was_on)
		vmm_egress(&e->sb->vmm, true);
	e->reason[0] = '\0';
	c->policy = egress_proxy_update(e);
	if (!e->proxy && e->grant->intercept && egress_proxy_need(e) == 0)
		c->policy = e->proxy->serial;
}

int egress_change(struct sandbox *sb, struct grant *g, struct egress_change *c)
{
	struct egress_sandbox *e = egress_make(sb);
	struct grant *old = e ? e->grant : NULL;

	if (!e)
		return -ENOMEM;
	e->grant = grant_ref(g);
	if (g) {
		begin_grant(e, old != NULL, c);
	} else {
		vmm_egress(&sb->vmm, false);
		egress_proxy_end(e, true);
		e->reason[0] = '\0';
	}
	grant_unref(old);
	store_egress(&sb->d->store, sb->id, g);
	e->tell_failure[0] = '\0';
	list_add_tail(&e->changes, &c->link);
	egress_agent_tell(e);
	egress_check(e);
	return 0;
}

void egress_drop_change(struct egress_change *c)
{
	if (c->link.next)
		list_del(&c->link);
}

void egress_renamed(struct sandbox *sb)
{
	list_for_each (p, &sb->d->egress.proxies, struct proxy, link)
		if (sb->egress && p->owner == sb->egress)
			memcpy(p->sandbox, sb->id, sizeof(p->sandbox));
}

void egress_drain(struct sandbox *sb)
{
	if (sb->egress && sb->egress->proxy)
		proxy_poll(sb->egress->proxy);
}

void egress_end(struct sandbox *sb)
{
	struct egress_sandbox *e = sb->egress;

	if (!e)
		return;
	e->prepared = NULL;
	egress_agent_end(e);
	egress_proxy_end(e, false);
	grant_unref(e->grant);
	e->grant = NULL;
}

void egress_free(struct sandbox *sb)
{
	struct egress_sandbox *e = sb->egress;

	if (!e)
		return;
	egress_log_free(&e->log);
	audit_share_unref(e->share);
	json_decref(e->ca);
	free(e);
	sb->egress = NULL;
}

/* --- looking at it ----------------------------------------------------------------------- */

struct grant *egress_grant(const struct sandbox *sb)
{
	return sb->egress ? sb->egress->grant : NULL;
}

json_t *egress_ca(const struct sandbox *sb)
{
	return sb->egress ? sb->egress->ca : NULL;
}

json_t *egress_json(const struct sandbox *sb)
{
	const struct egress_sandbox *e = sb->egress;
	const struct grant *g = egress_grant(sb);
	const char *state = "off", *reason = NULL;

	if (g) {
		if (e->reason[0])
			reason = e->reason;
		else if (e->tell_failure[0])
			reason = e->tell_failure;
		state = reason ? "failed" : "on";
	}
	return json_pack("{s:o, s:o, s:s, s:s?}", "allow", g ? json_incref(g->allow) : json_array(),
			 "inject", grant_inject_names(g), "state", state, "reason", reason);
}

char *egress_lines(const struct sandbox *sb, size_t limit, size_t *len)
{
	static const struct egress_log none;

	return egress_log_lines(sb->egress ? &sb->egress->log : &none, limit, len);
}
