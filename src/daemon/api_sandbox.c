/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sandboxes: look at, delete, console.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/fields.h"
#include "daemon/limits.h"
#include "daemon/reply.h"

#include <stdio.h>
#include <string.h>

/* --- look at ----------------------------------------------------------------------------- */

/* One that ended by itself is remembered, with the reason. */
static json_t *row_json(const struct store_row *row)
{
	json_t *allow = row->egress ? json_incref(row->egress) : json_array();

	return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s?, s:[], s:I, s:I, s:I, s:s, "
			 "s:{s:o, s:{}, s:s, s:n}, s:O?}",
			 "id", row->id, "state", "ended", "template", row->template, "memory_mib",
			 (json_int_t)row->memory_mib, "vcpus", (json_int_t)row->vcpus, "disk_mib",
			 (json_int_t)row->disk_mib, "generation", (json_int_t)row->generation,
			 "parent", row->parent[0] ? row->parent : NULL, "children", "created_at",
			 (json_int_t)row->created_ms, "ended_at", (json_int_t)row->ended_ms,
			 "exec_count", (json_int_t)row->exec_count, "ended_reason", row->reason,
			 "egress", "allow", allow, "inject", "state", "off", "reason", "metadata",
			 row->metadata);
}

void api_sandbox_get(struct request *r)
{
	struct daemon *d = r->http->d;
	struct sandbox *sb = registry_find(&d->registry, r->match.id, r->owner);
	struct store_row row;
	int rc;

	if (sb) {
		reply_json(r, 200, sandbox_json(sb, true));
		return;
	}
	rc = ids_valid(r->match.id) ? store_find(&d->store, r->match.id, r->owner, &row) : 0;
	if (rc > 0 && !row.deleted)
		rc = store_details(&d->store, &row);
	if (rc < 0)
		reply_error(r, 500, "internal", "the state database cannot be read", NULL, NULL);
	else if (rc == 0 || row.deleted)
		reply_no_sandbox(r, NULL);
	else
		reply_json(r, 200, row_json(&row));
	if (rc > 0)
		store_row_free(&row);
}

void api_sandbox_console(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	_cleanup_free char *text = NULL;
	size_t len;

	if (!sb)
		return;
	text = vmm_console_copy(&sb->vmm, &len);
	if (!text)
		reply_json(r, 500, NULL);
	else
		http_reply(r, 200, "application/octet-stream", text, len, NULL);
}

/* --- delete ------------------------------------------------------------------------------ */

/* A delete that waits until the VM's memory is free again. */
struct removal {
	struct request *r;
	struct sandbox_user user;
};

static void removal_done(struct sandbox_user *u, const char *reason)
{
	struct removal *m = u->arg;

	(void)reason;
	reply_empty(m->r);
}

static void removal_end(struct request *r)
{
	struct removal *m = r->state;

	sandbox_drop_user(&m->user);
	free(m);
}

static const struct request_ops removal_ops = {.end = removal_end};

static void delete_live(struct request *r, struct sandbox *sb)
{
	struct removal *m = calloc(1, sizeof(*m));

	if (!m) {
		reply_json(r, 500, NULL);
		return;
	}
	m->r = r;
	r->ops = &removal_ops;
	r->state = m;
	sandbox_add_waiting(sb, &m->user, removal_done, m);
	sandbox_end(sb, true, "deleted");
}

void api_sandbox_delete(struct request *r)
{
	struct daemon *d = r->http->d;
	struct sandbox *sb = registry_find(&d->registry, r->match.id, r->owner);
	struct store_row row;
	int rc;

	if (sb) {
		delete_live(r, sb);
		return;
	}
	rc = ids_valid(r->match.id) ? store_find(&d->store, r->match.id, r->owner, &row) : 0;
	if (rc == 0) {
		reply_no_sandbox(r, NULL);
		return;
	}
	if (rc < 0) {
		reply_error(r, 500, "internal", "the state database cannot be read", NULL, NULL);
		return;
	}
	if (!row.deleted)
		store_delete(&d->store, r->match.id);
	reply_empty(r);
}
