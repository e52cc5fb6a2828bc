/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of sandboxes. An allowlist is kept once, however many have it: by the hash
 * of its text, and its text is made only when it is not there yet.
 */
#define _GNU_SOURCE
#include "daemon/egress/grant.h"
#include "daemon/store_impl.h"
#include "lib/cleanup.h"
#include "lib/json_safe.h"
#include "lib/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int store_run(struct store *s, sqlite3_stmt *st)
{
	/* In a transaction a full disk may have undone what was before: all of it is repeated. */
	bool alone = sqlite3_get_autocommit(s->db);
	int rc;

	do {
		rc = sqlite3_step(st);
		sqlite3_reset(st);
	} while (rc != SQLITE_DONE && alone && store_again(s, rc));
	sqlite3_clear_bindings(st);
	if (rc == SQLITE_DONE)
		return 0;
	if (alone || store_errno(s->db, rc) != ENOSPC)
		store_failed(s, "write");
	return -EIO;
}

/* The number of this grant in the table, put there when it is new; 0: none. Or -errno. */
static int64_t store_grant(struct store *s, const struct grant *g)
{
	_cleanup_free char *text = NULL;
	sqlite3_stmt *st = s->grant;
	int64_t id = 0;
	int rc;

	if (!g)
		return 0;
	sqlite3_bind_blob(st, 1, g->hash, sizeof(g->hash), SQLITE_STATIC);
	rc = sqlite3_step(st);
	if (rc == SQLITE_ROW)
		id = sqlite3_column_int64(st, 0);
	sqlite3_reset(st);
	sqlite3_clear_bindings(st);
	if (rc == SQLITE_ROW)
		return id;
	text = json_text(g->allow);
	if (!text)
		return -ENOMEM;
	sqlite3_bind_blob(s->grant_new, 1, g->hash, sizeof(g->hash), SQLITE_STATIC);
	sqlite3_bind_text(s->grant_new, 2, text, -1, SQLITE_STATIC);
	rc = store_run(s, s->grant_new);
	return rc < 0 ? rc : sqlite3_last_insert_rowid(s->db);
}

static void bind_grant(sqlite3_stmt *st, int at, int64_t grant)
{
	if (grant)
		sqlite3_bind_int64(st, at, grant);
	else
		sqlite3_bind_null(st, at);
}

/* What is written together; it may be called again. */
struct store_change {
	const struct store_row *row;
	const char *text; /* metadata; the winner of a merge; the id of a sandbox */
	const struct grant *grant;
	int64_t now_ms;
};

/* All of it or nothing: -EIO (logged). */
static int store_together(struct store *s, int (*fn)(struct store *s, const struct store_change *c),
			  const struct store_change *c)
{
	struct err err;
	int rc, code;

	do {
		err = (struct err){0};
		rc = store_exec(s, "BEGIN IMMEDIATE", "write", &err);
		if (rc == 0)
			rc = fn(s, c);
		/* One that found no room is none any more: it is not the end alone that is
		 * repeated. */
		if (rc == 0 && sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL) == SQLITE_OK)
			return 0;
		code = sqlite3_errcode(s->db);
		if (code != SQLITE_OK)
			store_error(s, &err, "write");
		if (!sqlite3_get_autocommit(s->db))
			sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
	} while (store_again(s, code));
	if (store_errno(s->db, code) == EUCLEAN)
		store_condemn(s);
	log_error("%s", err.num ? err.msg : "a change cannot be written to the state database");
	return -EIO;
}

static int store_insert_rows(struct store *s, const struct store_change *c)
{
	const struct store_row *row = c->row;
	int64_t grant = store_grant(s, row->grant);
	sqlite3_stmt *st = s->insert;

	if (grant < 0)
		return (int)grant;
	sqlite3_bind_text(st, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_text(st, 2, row->template, -1, SQLITE_STATIC);
	if (row->parent[0])
		sqlite3_bind_text(st, 3, row->parent, -1, SQLITE_STATIC);
	sqlite3_bind_int64(st, 4, row->generation);
	sqlite3_bind_int64(st, 5, row->memory_mib);
	sqlite3_bind_int64(st, 6, row->vcpus);
	sqlite3_bind_int64(st, 7, row->disk_mib);
	sqlite3_bind_text(st, 8, c->text ? c->text : "{}", -1, SQLITE_STATIC);
	sqlite3_bind_int64(st, 9, row->created_ms);
	bind_grant(st, 10, grant);
	sqlite3_bind_text(st, 11, row->owner, -1, SQLITE_STATIC);
	return store_run(s, st);
}

int store_insert(struct store *s, const struct store_row *row)
{
	_cleanup_free char *meta = json_text(row->metadata);
	const struct store_change c = {.row = row, .text = meta};

	if (row->metadata && !meta)
		return -ENOMEM;
	store_prune_soon(s);
	/* A new allowlist without the row that has it would stay for ever. */
	return row->grant ? store_together(s, store_insert_rows, &c) : store_insert_rows(s, &c);
}

/* The three steps of a merge, inside a transaction. */
static int store_merge_rows(struct store *s, const struct store_change *c)
{
	const struct store_row *row = c->row;
	int64_t grant = store_grant(s, row->grant);
	int rc;

	if (grant < 0)
		return (int)grant;
	sqlite3_bind_text(s->children, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_text(s->children, 2, c->text, -1, SQLITE_STATIC);
	rc = store_run(s, s->children);
	if (rc < 0)
		return rc;
	/* Before the winner lets go of its grant. */
	sqlite3_bind_text(s->renamed, 1, row->id, -1, SQLITE_STATIC);
	if (row->parent[0])
		sqlite3_bind_text(s->renamed, 2, row->parent, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s->renamed, 3, row->generation);
	sqlite3_bind_int64(s->renamed, 4, row->memory_mib);
	sqlite3_bind_int64(s->renamed, 5, row->vcpus);
	sqlite3_bind_int64(s->renamed, 6, row->disk_mib);
	bind_grant(s->renamed, 7, grant);
	rc = store_run(s, s->renamed);
	if (rc < 0)
		return rc;
	sqlite3_bind_text(s->merged, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_text(s->merged, 2, c->text, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s->merged, 3, c->now_ms);
	return store_run(s, s->merged);
}

int store_merge(struct store *s, const struct store_row *row, const char *winner, int64_t now_ms)
{
	store_prune_soon(s);
	return store_together(s, store_merge_rows,
			      &(struct store_change){.row = row, .text = winner, .now_ms = now_ms});
}

void store_end(struct store *s, const char *id, int64_t ended_ms, uint64_t exec_count,
	       const char *reason, bool deleted)
{
	sqlite3_stmt *st = s->end;

	sqlite3_bind_text(st, 1, id, -1, SQLITE_STATIC);
	sqlite3_bind_int64(st, 2, ended_ms);
	sqlite3_bind_int64(st, 3, (int64_t)exec_count);
	sqlite3_bind_text(st, 4, reason, -1, SQLITE_STATIC);
	sqlite3_bind_int(st, 5, deleted);
	store_prune_soon(s);
	if (store_run(s, st) < 0)
		log_warn("the end of %s is not in the state database", id);
}

static int store_egress_rows(struct store *s, const struct store_change *c)
{
	int64_t grant = store_grant(s, c->grant);

	if (grant < 0)
		return (int)grant;
	sqlite3_bind_text(s->egress, 1, c->text, -1, SQLITE_STATIC);
	bind_grant(s->egress, 2, grant);
	return store_run(s, s->egress);
}

void store_egress(struct store *s, const char *id, const struct grant *g)
{
	const struct store_change c = {.text = id, .grant = g}, none = {.text = id};

	store_prune_soon(s);
	if (store_together(s, store_egress_rows, &c) == 0)
		return;
	/* Better nothing than a list that is not in force any more. */
	(void)!store_egress_rows(s, &none);
	log_warn("what %s may reach is not in the state database", id);
}

void store_delete(struct store *s, const char *id)
{
	sqlite3_bind_text(s->deleted, 1, id, -1, SQLITE_STATIC);
	if (store_run(s, s->deleted) < 0)
		log_warn("the deletion of %s is not in the state database", id);
}

/* These two say whether memory was there. */
static bool column_text(sqlite3_stmt *st, int col, char *out, size_t len)
{
	const unsigned char *t = sqlite3_column_text(st, col);

	snprintf(out, len, "%s", t ? (const char *)t : "");
	return t || sqlite3_column_type(st, col) == SQLITE_NULL;
}

static bool column_json(sqlite3_stmt *st, int col, json_t **out)
{
	const char *t = (const char *)sqlite3_column_text(st, col);

	if (t) {
		*out = json_safe_loadb(t, strlen(t), 0, NULL);
		return *out || !json_safe_lacked();
	}
	return sqlite3_column_type(st, col) == SQLITE_NULL;
}

/* The columns of `find`. False: no memory. */
static bool store_row(sqlite3_stmt *st, struct store_row *row)
{
	bool ok = column_text(st, 0, row->template, sizeof(row->template));

	row->memory_mib = (uint32_t)sqlite3_column_int64(st, 1);
	row->vcpus = (uint32_t)sqlite3_column_int64(st, 2);
	row->disk_mib = (uint32_t)sqlite3_column_int64(st, 3);
	ok &= column_text(st, 4, row->parent, sizeof(row->parent));
	row->generation = (uint32_t)sqlite3_column_int64(st, 5);
	row->created_ms = sqlite3_column_int64(st, 6);
	row->ended_ms = sqlite3_column_int64(st, 7);
	row->exec_count = (uint64_t)sqlite3_column_int64(st, 8);
	row->deleted = sqlite3_column_int(st, 9) != 0;
	ok &= column_text(st, 10, row->reason, sizeof(row->reason));
	return ok;
}

/* The columns of `details`. */
static bool store_details_of(sqlite3_stmt *st, struct store_row *row)
{
	return column_json(st, 0, &row->metadata) && column_json(st, 1, &row->egress);
}

/* The row that a bound statement gives: 1, 0 when there is none, -EIO. */
static int store_take(struct store *s, sqlite3_stmt *st, struct store_row *row,
		      bool (*take)(sqlite3_stmt *st, struct store_row *row))
{
	int rc = sqlite3_step(st);
	bool ok = rc != SQLITE_ROW || take(st, row);

	sqlite3_reset(st);
	sqlite3_clear_bindings(st);
	if (rc == SQLITE_ROW && ok)
		return 1;
	if (rc == SQLITE_DONE)
		return 0;
	store_failed(s, "read");
	return -EIO;
}

int store_find(struct store *s, const char *id, const char *owner, struct store_row *row)
{
	*row = (struct store_row){0};
	snprintf(row->id, sizeof(row->id), "%s", id);
	sqlite3_bind_text(s->find, 1, id, -1, SQLITE_STATIC);
	sqlite3_bind_text(s->find, 2, owner, -1, SQLITE_STATIC);
	return store_take(s, s->find, row, store_row);
}

int store_details(struct store *s, struct store_row *row)
{
	int rc;

	sqlite3_bind_text(s->details, 1, row->id, -1, SQLITE_STATIC);
	rc = store_take(s, s->details, row, store_details_of);
	if (rc < 0)
		store_row_free(row);
	return rc;
}

void store_row_free(struct store_row *row)
{
	json_decref(row->metadata);
	json_decref(row->egress);
	row->metadata = row->egress = NULL;
}
