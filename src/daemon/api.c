/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Table of endpoints, and what several of them share.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "lib/cleanup.h"

#include <string.h>

/*
 * What is wrong and does not stop it stands on a line of its own: no more than that, as whoever
 * asks needs no key, and the reason has names of the operator's files in it.
 */
static void api_healthz(struct request *r)
{
	const char *text = r->http->d->egress.op.usable
				   ? "ok"
				   : "ok\negress is off: the daemon's log says why";

	http_reply(r, 200, "text/plain; charset=utf-8", text, strlen(text), NULL);
}

const struct route api_routes[] = {
	{"GET", "/v1/healthz", .open = true, .finish = api_healthz},
	{"POST", "/v1/sandboxes", .finish = api_sandbox_create},
	{"GET", "/v1/sandboxes", .finish = api_sandbox_list},
	{"GET", "/v1/sandboxes/:id", .finish = api_sandbox_get},
	{"DELETE", "/v1/sandboxes/:id", .finish = api_sandbox_delete},
	{"GET", "/v1/sandboxes/:id/console", .finish = api_sandbox_console},
	{"POST", "/v1/sandboxes/:id/fork", .finish = api_fork},
	{"POST", "/v1/sandboxes/:id/merge_into/:other", .finish = api_merge},
	{"GET", "/v1/sandboxes/:id/diff/:other", .finish = api_diff},
	{"GET", "/v1/sandboxes/:id/egress", .finish = api_egress_get},
	{"PUT", "/v1/sandboxes/:id/egress", .finish = api_egress_put},
	{"GET", "/v1/sandboxes/:id/egress/log", .finish = api_egress_log},
	{"POST", "/v1/policy/test", .finish = api_policy_test},
	{"GET", "/v1/metrics", .finish = api_metrics},
	{"GET", "/v1/tree", .finish = api_tree},
	{"GET", "/v1/templates", .finish = api_template_list},
	{"POST", "/v1/sandboxes/:id/exec", .finish = api_exec},
	{"GET", "/v1/sandboxes/:id/exec", .finish = api_exec_list},
	{"POST", "/v1/sandboxes/:id/exec/:exec_id/interrupt", .finish = api_exec_interrupt},
	{"POST", "/v1/sandboxes/:id/contexts", .finish = api_context_create},
	{"GET", "/v1/sandboxes/:id/contexts", .finish = api_context_list},
	{"POST", "/v1/sandboxes/:id/contexts/:context_id/restart", .finish = api_context_restart},
	{"DELETE", "/v1/sandboxes/:id/contexts/:context_id", .finish = api_context_delete},
	{"POST", "/v1/sandboxes/:id/commands", .finish = api_command_create},
	{"GET", "/v1/sandboxes/:id/commands", .finish = api_command_list},
	{"GET", "/v1/sandboxes/:id/commands/:command_id", .finish = api_command_get},
	{"DELETE", "/v1/sandboxes/:id/commands/:command_id", .finish = api_command_delete},
	{"GET", "/v1/sandboxes/:id/commands/:command_id/stream", .finish = api_command_stream},
	{"GET", "/v1/sandboxes/:id/commands/:command_id/terminal", .finish = api_command_terminal},
	{"POST", "/v1/sandboxes/:id/commands/:command_id/stdin", .begin = api_stdin_begin,
	 .finish = api_stdin_finish},
	{"POST", "/v1/sandboxes/:id/commands/:command_id/signal", .finish = api_command_signal},
	{"POST", "/v1/sandboxes/:id/commands/:command_id/resize", .finish = api_command_resize},
	{"PUT", "/v1/sandboxes/:id/files", .begin = api_put_begin, .finish = api_put_finish},
	{"GET", "/v1/sandboxes/:id/files", .finish = api_get},
	{"GET", "/v1/sandboxes/:id/files/stat", .finish = api_file_stat},
	{"GET", "/v1/sandboxes/:id/files/list", .finish = api_file_list},
	{"POST", "/v1/sandboxes/:id/files/mkdir", .finish = api_file_mkdir},
	{"POST", "/v1/sandboxes/:id/files/remove", .finish = api_file_remove},
	{"POST", "/v1/sandboxes/:id/files/rename", .finish = api_file_rename},
	{"POST", "/v1/sandboxes/:id/files/chmod", .finish = api_file_chmod},
};
const size_t api_route_count = ARRAY_SIZE(api_routes);

struct sandbox *api_find_sandbox(struct request *r)
{
	return api_find_by_id(r, r->match.id, NULL);
}

struct sandbox *api_find_by_id(struct request *r, const char *id, const char *field)
{
	struct daemon *d = r->http->d;
	struct store_row row;
	struct sandbox *sb;
	int rc;

	if (!ids_valid(id)) {
		reply_no_sandbox(r, field);
		return NULL;
	}
	sb = registry_find(&d->registry, id, r->owner);
	if (sb)
		return sb;
	rc = store_find(&d->store, id, r->owner, &row);
	if (rc < 0)
		reply_error(r, 500, "internal", "the state database cannot be read", NULL, NULL);
	else if (rc == 0 || row.deleted)
		reply_no_sandbox(r, field);
	else
		reply_other_ended(r, row.reason, field);
	return NULL;
}
