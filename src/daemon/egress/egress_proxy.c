/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The proxy of a sandbox: starting it when it is needed, telling it the policy,
 * handing it connections, and what becomes of what it says.
 */
#define _GNU_SOURCE
#include "daemon/daemon.h"
#include "daemon/egress/audit_share.h"
#include "daemon/egress/egress_impl.h"
#include "daemon/egress/policy.h"
#include "daemon/exec.h"
#include "lib/io.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* --- what it says ------------------------------------------------------------------------ */

static void on_policy(struct proxy *p, uint64_t serial, const char *error, json_t *ca)
{
	struct egress_sandbox *e = p->owner;

	if (ca && !error && !e->ca)
		e->ca = json_incref(ca);
	/* What an earlier policy was worth matters no more. */
	if (serial == p->serial) {
		e->reason[0] = '\0';
		if (error)
			egress_failed(e, "the egress proxy refused the policy: %s", error);
		else if (e->grant->intercept && !e->ca)
			egress_failed(e, "the egress proxy made no CA for intercepted hosts");
		egress_agent_tell(e);
	}
	egress_check(e);
}

static bool on_record(struct proxy *p, const struct record *r, char *text)
{
	struct egress_sandbox *e = p->owner;

	if (r->id > e->ids)
		e->ids = r->id;
	egress_log_add(&e->log, text);
	if (!r->end && !r->allow && e->sb->state != SANDBOX_ENDED)
		exec_denied(e->sb, r);
	return true;
}

/* What it does not count itself. 0, or -errno. */
static int tell_used(struct egress_sandbox *e)
{
	uint64_t others = e->bytes - e->proxy->used;

	return others ? proxy_used(e->proxy, others) : 0;
}

static void on_used(struct proxy *p, uint64_t more)
{
	struct egress_sandbox *e = p->owner;

	if (__builtin_add_overflow(e->bytes, more, &e->bytes))
		e->bytes = UINT64_MAX;
	/* Of one that leaves, while the next one runs. */
	if (e->proxy && e->proxy != p && tell_used(e) < 0)
		proxy_kill(e->proxy, "the egress proxy does not take what was used before it");
}

static void on_ended(struct proxy *p, const char *reason)
{
	struct egress_sandbox *e = p->owner;

	e->proxy = NULL;
	e->failed = true;
	egress_failed(e, "%s", reason);
	egress_agent_tell(e);
	egress_check(e);
}

static const struct proxy_ops ops = {
	.policy = on_policy,
	.record = on_record,
	.used = on_used,
	.ended = on_ended,
};

/* --- start and update -------------------------------------------------------------------- */

/* A new policy of the grant: its serial, or -errno with a sentence. */
static int64_t send_policy(struct egress_sandbox *e, struct err *err)
{
	_cleanup_fd int fd = policy_make(&e->sb->d->egress.op, e->sb->id, e->grant, e->ca, err);
	int64_t serial = fd < 0 ? fd : proxy_policy(e->proxy, fd);

	if (fd >= 0 && serial < 0)
		err_set(err, (int)-serial, "the egress proxy does not take the policy");
	return serial;
}

/* Whether it may be started again after a failure; counts it. */
static bool may_restart(struct egress_sandbox *e)
{
	uint64_t now = io_now_ns(), *oldest = &e->failures_ns[e->nfailures % PROXY_RESTARTS];

	if (!e->failed)
		return true;
	if (*oldest && now - *oldest < PROXY_RESTART_NS)
		return false;
	*oldest = now;
	e->nfailures++;
	return true;
}

int egress_proxy_need(struct egress_sandbox *e)
{
	struct err err = {0};

	if (e->proxy)
		return 0;
	if (!may_restart(e)) {
		/* Mostly the reason is there: that of the last end. */
		if (!e->reason[0])
			egress_failed(e, "the egress proxy has ended too often within a minute");
		return -EAGAIN;
	}
	e->proxy = proxy_start(&e->sb->d->egress, e->sb->id, &ops, e, &err);
	if (!e->share)
		e->share = audit_share_new(&e->sb->d->egress.shares, e->sb->owner, e->sb->root);
	if (e->proxy) {
		e->proxy->share = audit_share_ref(e->share);
		e->proxy->id_base = e->ids;
		e->proxy->streams = e->streams;
		if (tell_used(e) < 0)
			err_text(&err, EIO, "the egress proxy does not take what was used before");
		if (err.num || send_policy(e, &err) < 0)
			egress_proxy_end(e, false);
	}
	e->failed = !e->proxy;
	if (e->proxy)
		return 0;
	egress_failed(e, "%s", err.msg);
	return -err.num;
}

uint64_t egress_proxy_update(struct egress_sandbox *e)
{
	struct err err = {0};
	int64_t serial = e->proxy ? send_policy(e, &err) : 0;

	if (serial >= 0)
		return (uint64_t)serial;
	/* What it still lets through may not be allowed any more. */
	proxy_kill(e->proxy, err.msg);
	return 0;
}

void egress_proxy_end(struct egress_sandbox *e, bool owner)
{
	struct proxy *p = e->proxy;

	if (p) {
		e->proxy = NULL;
		e->failed = false;
		proxy_leave(p, owner);
	}
	if (owner)
		return;
	/* One that is on its way out may still know us. */
	list_for_each (it, &e->sb->d->egress.proxies, struct proxy, link)
		if (it->owner == e)
			it->owner = NULL;
}

/* --- connections ------------------------------------------------------------------------- */

/* 0, or -errno: nobody has it. */
static int connect_proxy(struct egress_sandbox *e, uint32_t id)
{
	_cleanup_fd int ours = -1, theirs = -1;
	int sv[2], rc = egress_proxy_need(e);

	if (rc < 0)
		return rc;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
		return -errno;
	ours = sv[0];
	theirs = sv[1];
	/* The proxy first: one that the VMM has accepted must not lead to nobody. */
	rc = proxy_stream(e->proxy, exec_only_running(e->sb), ours);
	e->streams = e->proxy->streams;
	return rc == 0 ? vmm_accept(&e->sb->vmm, id, theirs) : rc;
}

void egress_on_connect(struct sandbox *sb, uint32_t id)
{
	struct egress_sandbox *e = sb->egress;

	if (sb->state == SANDBOX_ENDED || !e || !e->grant || connect_proxy(e, id) < 0)
		vmm_reject(&sb->vmm, id);
}
