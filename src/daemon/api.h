/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The endpoints. api_routes is the table; the handlers are in the other files
 * api_*.c. A new endpoint is a row in api.c, a handler, and
 * a path in api/openapi.yaml (a test compares the two).
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/http.h"
#include "daemon/sandbox.h"

struct grant;

extern const struct route api_routes[];
extern const size_t api_route_count;

void api_sandbox_create(struct request *r);
void api_sandbox_list(struct request *r);
void api_sandbox_get(struct request *r);
void api_sandbox_delete(struct request *r);
void api_sandbox_console(struct request *r);
void api_diff(struct request *r);
void api_fork(struct request *r);
void api_merge(struct request *r);
void api_tree(struct request *r);
void api_egress_get(struct request *r);
void api_egress_put(struct request *r);
void api_egress_log(struct request *r);
void api_policy_test(struct request *r);
void api_metrics(struct request *r);
void api_template_list(struct request *r);
void api_exec(struct request *r);
void api_exec_list(struct request *r);
void api_exec_interrupt(struct request *r);
void api_context_create(struct request *r);
void api_context_list(struct request *r);
void api_context_restart(struct request *r);
void api_context_delete(struct request *r);
void api_command_create(struct request *r);
void api_command_list(struct request *r);
void api_command_get(struct request *r);
void api_command_delete(struct request *r);
void api_command_stream(struct request *r);
void api_command_terminal(struct request *r);
void api_stdin_begin(struct request *r);
void api_stdin_finish(struct request *r);
void api_command_signal(struct request *r);
void api_command_resize(struct request *r);
void api_put_begin(struct request *r);
void api_put_finish(struct request *r);
void api_get(struct request *r);
void api_file_stat(struct request *r);
void api_file_list(struct request *r);
void api_file_mkdir(struct request *r);
void api_file_remove(struct request *r);
void api_file_rename(struct request *r);
void api_file_chmod(struct request *r);

/*
 * The value of "egress" (NULL: absent) as a grant, *out NULL when it grants nothing. False:
 * answered.
 */
bool api_egress_grant(struct request *r, const json_t *value, struct grant **out);
/* Counts it for who asks (grant_hold()). False: answered, and *g is let go. */
bool api_egress_hold(struct request *r, struct grant **g);
/* Whether there is egress on this host; false: answered. */
bool api_egress_usable(struct request *r);
/* Releases a body that may have secrets in it, and overwrites the text of the request. */
void api_egress_forget(struct request *r, json_t *body);

/* The living sandbox of the path, or NULL: answered (404, or 409 with the reason of its end). */
struct sandbox *api_find_sandbox(struct request *r);
/* The same of another id, which the answer calls by the name of its place in the request. */
struct sandbox *api_find_by_id(struct request *r, const char *id, const char *field);
