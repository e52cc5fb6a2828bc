/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POST /v1/sandboxes/:id/fork: the body, checked, becomes a fork. A sandbox that was made not to be
 * forked is refused here, before it is frozen.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/egress/grant.h"
#include "daemon/fields.h"
#include "daemon/fork.h"
#include "daemon/limits.h"
#include "daemon/reply.h"

#include <stdio.h>

/* Absent: what the parent has. */
static bool fork_egress(struct request *r, const json_t *body, struct fork_order *order)
{
	const json_t *egress = json_object_get(body, "egress");
	bool inject = false;

	if (!fields_bool(r, body, "inherit_inject", &inject))
		return false;
	if (egress && !json_is_null(egress)) {
		if (inject) {
			reply_invalid(r, "inherit_inject",
				      "inherit_inject is for children that inherit: these get an "
				      "egress of their own");
			return false;
		}
		return api_egress_grant(r, egress, &order->grant);
	}
	order->egress = inject ? FORK_EGRESS_INJECT : FORK_EGRESS_INHERIT;
	return true;
}

/* What the daemon allows is the operator's to change, and the sentence says how. */
static bool fork_number(struct request *r, const json_t *body, unsigned int *n)
{
	uint32_t most = r->http->d->config.max_fork;
	json_int_t v = 1;
	char text[96];

	if (!fields_int(r, body, "n", 1, LIMIT_FORK, &v))
		return false;
	*n = (unsigned int)v;
	if (v <= most)
		return true;
	snprintf(text, sizeof(text), "n is more than the %u copies that one fork may make here",
		 most);
	reply_error(r, 400, "invalid_request", text, "the daemon's PODFLARE_MAX_FORK sets it", "n");
	return false;
}

/* False: answered. */
static bool fork_places(struct request *r, const struct sandbox *sb, unsigned int n)
{
	struct daemon *d = r->http->d;

	if (d->stopping)
		reply_error(r, 503, "stopping", "the daemon is stopping", NULL, NULL);
	else if (!sb->forkable)
		reply_not_forkable(r, "it cannot be forked");
	else if (!registry_reserve(&d->registry, n))
		reply_too_many_sandboxes(r);
	else
		return true;
	return false;
}

void api_fork(struct request *r)
{
	static const char *const known[] = {"n",        "reseed", "egress", "inherit_inject",
					    "forkable", NULL};
	struct sandbox *sb = api_find_sandbox(r);
	json_t *body = sb ? fields_parse(r, true) : NULL;
	struct fork_order order = {.reseed = true, .forkable = true};
	bool ok;

	if (!body)
		return;
	ok = fields_only(r, body, known) && fork_number(r, body, &order.n) &&
	     fields_bool(r, body, "reseed", &order.reseed) &&
	     fields_bool(r, body, "forkable", &order.forkable) && fork_places(r, sb, order.n);
	/* An allowlist may be long: it is looked at when there are places for who asks. */
	if (ok && !fork_egress(r, body, &order)) {
		registry_unreserve(&r->http->d->registry, order.n);
		ok = false;
	}
	api_egress_forget(r, body);
	if (ok)
		fork_submit(sb, r, &order);
	grant_unref(order.grant);
}
