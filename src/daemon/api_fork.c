/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POST /v1/sandboxes/:id/fork: the body, checked, becomes a fork.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/fields.h"
#include "daemon/fork.h"
#include "daemon/reply.h"

void api_fork(struct request *r)
{
	static const char *const known[] = {"n", "reseed", NULL};
	struct sandbox *sb = api_find_sandbox(r);
	struct daemon *d = r->http->d;
	json_t *body = sb ? fields_parse(r, true) : NULL;
	json_int_t n = 1;
	bool reseed = true, ok;

	if (!body)
		return;
	ok = fields_only(r, body, known) && fields_int(r, body, "n", 1, d->config.max_fork, &n) &&
	     fields_bool(r, body, "reseed", &reseed);
	json_decref(body);
	if (!ok)
		return;
	if (d->stopping)
		reply_error(r, 503, "stopping", "the daemon is stopping", NULL, NULL);
	else
		fork_submit(sb, r, (unsigned int)n, reseed);
}
