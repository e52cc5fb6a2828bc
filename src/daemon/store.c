/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The database. synchronous=NORMAL in WAL mode: a power failure may lose the
 * last rows but never the file; no VM survives a power failure anyway.
 */
#define _GNU_SOURCE
#include "daemon/store.h"
#include "daemon/limits.h"
#include "lib/cleanup.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define STORE_VERSION     4
#define STORE_VERSION_SQL "PRAGMA user_version=4;"

static const char schema_sql[] =
	"CREATE TABLE IF NOT EXISTS sandboxes("
	" id TEXT PRIMARY KEY, owner TEXT NOT NULL, template TEXT NOT NULL, parent TEXT,"
	" generation INTEGER NOT NULL,"
	" memory_mib INTEGER NOT NULL, vcpus INTEGER NOT NULL, disk_mib INTEGER NOT NULL,"
	" metadata TEXT NOT NULL, egress TEXT, created_ms INTEGER NOT NULL,"
	" ended_ms INTEGER, exec_count INTEGER NOT NULL DEFAULT 0, reason TEXT,"
	" deleted INTEGER NOT NULL DEFAULT 0, merged_into TEXT) STRICT, WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS salt(value BLOB NOT NULL) STRICT;"
	"INSERT INTO salt SELECT randomblob(32) WHERE NOT EXISTS(SELECT * FROM salt);"
	"CREATE INDEX IF NOT EXISTS sandboxes_ended ON sandboxes(ended_ms);"
	"CREATE INDEX IF NOT EXISTS sandboxes_parent ON sandboxes(parent)"
	" WHERE parent IS NOT NULL;" STORE_VERSION_SQL;

static const char insert_sql[] =
	"INSERT INTO sandboxes(id, template, parent, generation, memory_mib, vcpus, disk_mib,"
	" metadata, created_ms, egress, owner)"
	" VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
static const char end_sql[] =
	"UPDATE sandboxes SET ended_ms=?2, exec_count=?3, reason=?4, deleted=?5 WHERE id=?1";
static const char find_sql[] =
	"SELECT template, memory_mib, vcpus, metadata, created_ms, ended_ms, exec_count, reason,"
	" deleted, parent, generation, disk_mib, egress FROM sandboxes WHERE id=?1"
	" AND (?2='' OR owner=?2)";
static const char deleted_sql[] = "UPDATE sandboxes SET deleted=1 WHERE id=?1";
static const char children_sql[] = "UPDATE sandboxes SET parent=?1 WHERE parent=?2 AND id<>?1";
static const char merged_sql[] =
	"UPDATE sandboxes SET ended_ms=?3, reason='merged', deleted=1, merged_into=?1 WHERE id=?2";
static const char renamed_sql[] =
	"UPDATE sandboxes SET parent=?2, generation=?3, memory_mib=?4, vcpus=?5, disk_mib=?6,"
	" egress=?7 WHERE id=?1";
static const char egress_sql[] = "UPDATE sandboxes SET egress=?2 WHERE id=?1";

static int store_error(struct store *s, struct err *err, const char *what)
{
	return err_text(err, EIO, "cannot %s the state database: %s", what,
			s->db ? sqlite3_errmsg(s->db) : "out of memory");
}

/* Whether it failed for want of room, and some was made: the same again. */
static bool store_again(struct store *s, int rc)
{
	rc &= 0xff;
	if (rc != SQLITE_FULL && !(rc == SQLITE_IOERR && sqlite3_system_errno(s->db) == ENOSPC))
		return false;
	if (!reserve_give(&s->reserve))
		return false;
	/* The log starts anew where it has room already; only the rows themselves need more. */
	if (sqlite3_wal_checkpoint_v2(s->db, NULL, SQLITE_CHECKPOINT_RESTART, NULL, NULL))
		log_debug("the state database's log cannot be written back yet");
	return true;
}

static int store_exec(struct store *s, const char *sql, const char *what, struct err *err)
{
	int rc;

	do
		rc = sqlite3_exec(s->db, sql, NULL, NULL, NULL);
	while (rc != SQLITE_OK && store_again(s, rc));
	return rc == SQLITE_OK ? 0 : store_error(s, err, what);
}

static int store_lock(struct store *s, const char *dir, struct err *err)
{
	char path[4096];

	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return err_set(err, errno, "cannot make the state directory %s", dir);
	if (snprintf(path, sizeof(path), "%s/lock", dir) >= (int)sizeof(path) - 16)
		return err_text(err, ENAMETOOLONG, "the state directory's name is too long");
	s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (s->lock_fd < 0)
		return err_set(err, errno, "cannot open %s", path);
	if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? err_text(err, EBUSY,
						       "another podflared uses the state "
						       "directory %s",
						       dir)
					    : err_set(err, errno, "cannot lock %s", path);
	return 0;
}

static int store_version(struct store *s, int *version, struct err *err)
{
	sqlite3_stmt *st = NULL;

	*version = -1;
	if (sqlite3_prepare_v2(s->db, "PRAGMA user_version", -1, &st, NULL) == SQLITE_OK &&
	    sqlite3_step(st) == SQLITE_ROW)
		*version = sqlite3_column_int(st, 0);
	sqlite3_finalize(st);
	return *version < 0 ? store_error(s, err, "read") : 0;
}

/* No VM outlives its daemon: a database of another version has only memories in it. */
static int store_aside(const char *path, int version, struct err *err)
{
	static const char *const tails[] = {"", "-wal", "-shm"};
	char from[4200], to[4300];
	int64_t now = (int64_t)(io_realtime_ns() / 1000000);

	for (size_t i = 0; i < ARRAY_SIZE(tails); i++) {
		snprintf(from, sizeof(from), "%s%s", path, tails[i]);
		snprintf(to, sizeof(to), "%s.v%d-%lld%s", path, version, (long long)now, tails[i]);
		if (rename(from, to) < 0 && errno != ENOENT)
			return err_set(err, errno, "cannot move the state database %s aside", from);
	}
	log_warn("the state database is of another version (%d, not %d): moved to %s.v%d-%lld",
		 version, STORE_VERSION, path, version, (long long)now);
	return 0;
}

static int store_connect(struct store *s, const char *path, struct err *err)
{
	if (sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) !=
	    SQLITE_OK)
		return store_error(s, err, "open");
	sqlite3_busy_timeout(s->db, 2000);
	return 0;
}

/* Opens the file; one of another version gives way to a new one. */
static int store_use(struct store *s, const char *path, struct err *err)
{
	int version = -1, rc = store_connect(s, path, err);

	if (rc == 0)
		rc = store_version(s, &version, err);
	if (rc < 0 || version == STORE_VERSION || version == 0)
		return rc;
	sqlite3_close(s->db);
	s->db = NULL;
	rc = store_aside(path, version, err);
	return rc == 0 ? store_connect(s, path, err) : rc;
}

/* Ends what a crash left open, drops what is too old. */
static int store_recover(struct store *s, struct err *err)
{
	int64_t now = (int64_t)(io_realtime_ns() / 1000000);
	char sql[512];
	int rc, open_rows;

	snprintf(sql, sizeof(sql),
		 "UPDATE sandboxes SET ended_ms=%lld,"
		 " reason='podflared was restarted' WHERE ended_ms IS NULL",
		 (long long)now);
	rc = store_exec(s, sql, "update", err);
	if (rc < 0)
		return rc;
	open_rows = sqlite3_changes(s->db);
	if (open_rows)
		log_warn("%d sandboxes of an earlier podflared had not been closed", open_rows);
	snprintf(sql, sizeof(sql), "DELETE FROM sandboxes WHERE ended_ms < %lld",
		 (long long)(now - STORE_KEEP_DAYS * 86400000LL));
	return store_exec(s, sql, "update", err);
}

static int store_prepare(struct store *s, struct err *err)
{
	const struct {
		sqlite3_stmt **st;
		const char *sql;
	} all[] = {{&s->insert, insert_sql},     {&s->end, end_sql},
		   {&s->find, find_sql},         {&s->deleted, deleted_sql},
		   {&s->children, children_sql}, {&s->merged, merged_sql},
		   {&s->renamed, renamed_sql},   {&s->egress, egress_sql}};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (sqlite3_prepare_v3(s->db, all[i].sql, -1, SQLITE_PREPARE_PERSISTENT, all[i].st,
				       NULL) != SQLITE_OK)
			return store_error(s, err, "use");
	return 0;
}

static int store_salt(struct store *s, struct err *err)
{
	sqlite3_stmt *st = NULL;
	bool ok = sqlite3_prepare_v2(s->db, "SELECT value FROM salt", -1, &st, NULL) == SQLITE_OK &&
		  sqlite3_step(st) == SQLITE_ROW &&
		  sqlite3_column_bytes(st, 0) == (int)sizeof(s->salt);

	if (ok)
		memcpy(s->salt, sqlite3_column_blob(st, 0), sizeof(s->salt));
	sqlite3_finalize(st);
	return ok ? 0 : store_error(s, err, "read the salt of");
}

int store_open(struct store *s, struct loop *loop, const char *dir, struct err *err)
{
	char path[4096];
	int rc;

	*s = (struct store){.lock_fd = -1, .reserve.fd = -1};
	rc = store_lock(s, dir, err);
	if (rc == 0) {
		reserve_open(&s->reserve, loop, dir);
		snprintf(path, sizeof(path), "%s/podflare.db", dir);
		rc = store_use(s, path, err);
	}
	if (rc == 0)
		rc = store_exec(s, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;", "open",
				err);
	if (rc == 0)
		rc = store_exec(s, schema_sql, "set up", err);
	if (rc == 0)
		rc = store_salt(s, err);
	if (rc == 0)
		rc = store_recover(s, err);
	if (rc == 0)
		rc = store_prepare(s, err);
	if (rc < 0)
		store_close(s);
	return rc;
}

void store_close(struct store *s)
{
	sqlite3_finalize(s->insert);
	sqlite3_finalize(s->end);
	sqlite3_finalize(s->find);
	sqlite3_finalize(s->deleted);
	sqlite3_finalize(s->children);
	sqlite3_finalize(s->merged);
	sqlite3_finalize(s->renamed);
	sqlite3_finalize(s->egress);
	sqlite3_close(s->db);
	reserve_close(&s->reserve);
	close_fd(&s->lock_fd);
	*s = (struct store){.lock_fd = -1, .reserve.fd = -1};
}

/* Runs a bound statement that returns no rows. */
static int store_run(struct store *s, sqlite3_stmt *st)
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
	log_error("cannot write the state database: %s", sqlite3_errmsg(s->db));
	return -EIO;
}

int store_insert(struct store *s, const struct store_row *row)
{
	_cleanup_free char *meta = json_text(row->metadata);
	_cleanup_free char *egress = json_text(row->egress);
	sqlite3_stmt *st = s->insert;

	if ((row->metadata && !meta) || (row->egress && !egress))
		return -ENOMEM;
	sqlite3_bind_text(st, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_text(st, 2, row->template, -1, SQLITE_STATIC);
	if (row->parent[0])
		sqlite3_bind_text(st, 3, row->parent, -1, SQLITE_STATIC);
	sqlite3_bind_int64(st, 4, row->generation);
	sqlite3_bind_int64(st, 5, row->memory_mib);
	sqlite3_bind_int64(st, 6, row->vcpus);
	sqlite3_bind_int64(st, 7, row->disk_mib);
	sqlite3_bind_text(st, 8, meta ? meta : "{}", -1, SQLITE_STATIC);
	sqlite3_bind_int64(st, 9, row->created_ms);
	sqlite3_bind_text(st, 10, egress, -1, SQLITE_STATIC);
	sqlite3_bind_text(st, 11, row->owner, -1, SQLITE_STATIC);
	return store_run(s, st);
}

/* The three steps of a merge, inside a transaction. */
static int store_merge_rows(struct store *s, const struct store_row *row, const char *winner,
			    int64_t now_ms)
{
	_cleanup_free char *egress = json_text(row->egress);
	int rc;

	if (row->egress && !egress)
		return -ENOMEM;
	sqlite3_bind_text(s->children, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_text(s->children, 2, winner, -1, SQLITE_STATIC);
	rc = store_run(s, s->children);
	if (rc < 0)
		return rc;
	sqlite3_bind_text(s->merged, 1, row->id, -1, SQLITE_STATIC);
	sqlite3_bind_text(s->merged, 2, winner, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s->merged, 3, now_ms);
	rc = store_run(s, s->merged);
	if (rc < 0)
		return rc;
	sqlite3_bind_text(s->renamed, 1, row->id, -1, SQLITE_STATIC);
	if (row->parent[0])
		sqlite3_bind_text(s->renamed, 2, row->parent, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s->renamed, 3, row->generation);
	sqlite3_bind_int64(s->renamed, 4, row->memory_mib);
	sqlite3_bind_int64(s->renamed, 5, row->vcpus);
	sqlite3_bind_int64(s->renamed, 6, row->disk_mib);
	sqlite3_bind_text(s->renamed, 7, egress, -1, SQLITE_STATIC);
	return store_run(s, s->renamed);
}

int store_merge(struct store *s, const struct store_row *row, const char *winner, int64_t now_ms)
{
	struct err err = {0};
	int rc, code;

	do {
		rc = store_exec(s, "BEGIN IMMEDIATE", "write", &err);
		if (rc == 0)
			rc = store_merge_rows(s, row, winner, now_ms);
		if (rc == 0)
			rc = store_exec(s, "COMMIT", "write", &err);
		if (rc == 0)
			return 0;
		code = sqlite3_errcode(s->db);
		if (!sqlite3_get_autocommit(s->db))
			sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
	} while (store_again(s, code));
	log_error("%s", err.num ? err.msg : "a merge cannot be written to the state database");
	return -EIO;
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
	if (store_run(s, st) < 0)
		log_warn("the end of %s is not in the state database", id);
}

void store_egress(struct store *s, const char *id, const json_t *allow)
{
	_cleanup_free char *text = json_text(allow);

	sqlite3_bind_text(s->egress, 1, id, -1, SQLITE_STATIC);
	sqlite3_bind_text(s->egress, 2, text, -1, SQLITE_STATIC);
	if ((allow && !text) || store_run(s, s->egress) < 0)
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
	ok &= column_json(st, 3, &row->metadata);
	row->created_ms = sqlite3_column_int64(st, 4);
	row->ended_ms = sqlite3_column_int64(st, 5);
	row->exec_count = (uint64_t)sqlite3_column_int64(st, 6);
	ok &= column_text(st, 7, row->reason, sizeof(row->reason));
	row->deleted = sqlite3_column_int(st, 8) != 0;
	ok &= column_text(st, 9, row->parent, sizeof(row->parent));
	row->generation = (uint32_t)sqlite3_column_int64(st, 10);
	row->disk_mib = (uint32_t)sqlite3_column_int64(st, 11);
	ok &= column_json(st, 12, &row->egress);
	return ok;
}

int store_find(struct store *s, const char *id, const char *owner, struct store_row *row)
{
	sqlite3_stmt *st = s->find;
	bool ok = true;
	int rc;

	sqlite3_bind_text(st, 1, id, -1, SQLITE_STATIC);
	sqlite3_bind_text(st, 2, owner, -1, SQLITE_STATIC);
	rc = sqlite3_step(st);
	if (rc == SQLITE_ROW) {
		*row = (struct store_row){0};
		snprintf(row->id, sizeof(row->id), "%s", id);
		ok = store_row(st, row);
	}
	sqlite3_reset(st);
	sqlite3_clear_bindings(st);
	if (rc == SQLITE_ROW && !ok)
		store_row_free(row);
	else if (rc == SQLITE_ROW)
		return 1;
	if (rc == SQLITE_DONE)
		return 0;
	log_error("cannot read the state database: %s", sqlite3_errmsg(s->db));
	return -EIO;
}

void store_row_free(struct store_row *row)
{
	json_decref(row->metadata);
	json_decref(row->egress);
	row->metadata = row->egress = NULL;
}
