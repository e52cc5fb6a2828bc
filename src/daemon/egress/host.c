/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start and end of what all proxies share.
 */
#include "daemon/egress/host.h"
#include "daemon/config.h"
#include "daemon/egress/proxy.h"

int egress_host_init(struct egress_host *h, struct loop *loop, const struct config *c,
		     struct err *err)
{
	h->loop = loop;
	h->program = c->egress_path;
	list_init(&h->proxies);
	audit_shares_init(&h->shares, &h->audit, loop, config_has_owners(c));
	operator_load(&h->op, &(struct operator_files){.config = c->egress_config,
						       .groups = c->groups_path,
						       .own = c->own_ranges,
						       .program = c->egress_path});
	return audit_open(&h->audit, c->state_dir, err);
}

void egress_host_free(struct egress_host *h)
{
	operator_free(&h->op);
	audit_shares_free(&h->shares);
	audit_close(&h->audit);
}

static struct proxy *by_pid(struct egress_host *h, pid_t pid)
{
	list_for_each (p, &h->proxies, struct proxy, link)
		if (p->pid == pid)
			return p;
	return NULL;
}

bool egress_host_owns(void *host, pid_t pid)
{
	return by_pid(host, pid) != NULL;
}

bool egress_host_reap(void *host, pid_t pid)
{
	struct proxy *p = by_pid(host, pid);

	return !p || proxy_reap(p);
}
