/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The database. synchronous=NORMAL in WAL mode: a power failure may lose the
 * last rows but never the file; no VM survives a power failure anyway.
 */
#define _GNU_SOURCE
#include "daemon/store.h"
#include "daemon/limits.h"
#include "daemon/store_impl.h"
#include "lib/cleanup.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define STORE_VERSION     5
#define STORE_VERSION_SQL "PRAGMA user_version=5;"

/*
 * The columns that are short come first: a row is read no further than it is asked for. A trigger
 * drops an allowlist with the last row that has it.
 */
#define GRANT_GONE_SQL                                                   \
	" BEGIN DELETE FROM grants WHERE id=old.grant_id AND NOT EXISTS" \
	" (SELECT 1 FROM sandboxes WHERE grant_id=old.grant_id); END;"

static const char schema_sql[] =
	"CREATE TABLE IF NOT EXISTS sandboxes("
	" id TEXT PRIMARY KEY, owner TEXT NOT NULL, template TEXT NOT NULL, parent TEXT,"
	" generation INTEGER NOT NULL,"
	" memory_mib INTEGER NOT NULL, vcpus INTEGER NOT NULL, disk_mib INTEGER NOT NULL,"
	" created_ms INTEGER NOT NULL, ended_ms INTEGER, exec_count INTEGER NOT NULL DEFAULT 0,"
	" deleted INTEGER NOT NULL DEFAULT 0, merged_into TEXT, grant_id INTEGER,"
	" reason TEXT, metadata TEXT NOT NULL) STRICT, WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS grants("
	" id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, allow TEXT NOT NULL) STRICT;"
	"CREATE TABLE IF NOT EXISTS salt(value BLOB NOT NULL) STRICT;"
	"INSERT INTO salt SELECT randomblob(32) WHERE NOT EXISTS(SELECT * FROM salt);"
	"CREATE INDEX IF NOT EXISTS sandboxes_ended ON sandboxes(ended_ms);"
	"CREATE INDEX IF NOT EXISTS sandboxes_parent ON sandboxes(parent)"
	" WHERE parent IS NOT NULL;"
	"CREATE INDEX IF NOT EXISTS sandboxes_grant ON sandboxes(grant_id)"
	" WHERE grant_id IS NOT NULL;"
	"CREATE TRIGGER IF NOT EXISTS grant_of_deleted AFTER DELETE ON sandboxes"
	" WHEN old.grant_id IS NOT NULL" GRANT_GONE_SQL
	"CREATE TRIGGER IF NOT EXISTS grant_of_changed AFTER UPDATE OF grant_id ON sandboxes"
	" WHEN old.grant_id IS NOT new.grant_id AND old.grant_id IS NOT NULL" GRANT_GONE_SQL
		STORE_VERSION_SQL;

static const char insert_sql[] =
	"INSERT INTO sandboxes(id, template, parent, generation, memory_mib, vcpus, disk_mib,"
	" metadata, created_ms, grant_id, owner)"
	" VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
/* Nobody asks a deleted one for more than its place in the tree. */
static const char end_sql[] = "UPDATE sandboxes SET ended_ms=?2, exec_count=?3, reason=?4,"
			      " deleted=?5, metadata=iif(?5, '{}', metadata),"
			      " grant_id=iif(?5, NULL, grant_id) WHERE id=?1";
static const char find_sql[] =
	"SELECT template, memory_mib, vcpus, disk_mib, parent, generation, created_ms, ended_ms,"
	" exec_count, deleted, reason FROM sandboxes WHERE id=?1 AND (?2='' OR owner=?2)";
static const char details_sql[] =
	"SELECT metadata, (SELECT allow FROM grants WHERE grants.id=grant_id)"
	" FROM sandboxes WHERE id=?1";
static const char deleted_sql[] =
	"UPDATE sandboxes SET deleted=1, metadata='{}', grant_id=NULL WHERE id=?1";
static const char children_sql[] = "UPDATE sandboxes SET parent=?1 WHERE parent=?2 AND id<>?1";
static const char merged_sql[] =
	"UPDATE sandboxes SET ended_ms=?3, reason='merged', deleted=1, merged_into=?1,"
	" metadata='{}', grant_id=NULL WHERE id=?2";
static const char renamed_sql[] =
	"UPDATE sandboxes SET parent=?2, generation=?3, memory_mib=?4, vcpus=?5, disk_mib=?6,"
	" grant_id=?7 WHERE id=?1";
static const char egress_sql[] = "UPDATE sandboxes SET grant_id=?2 WHERE id=?1";
static const char grant_sql[] = "SELECT id FROM grants WHERE hash=?1";
static const char grant_new_sql[] = "INSERT INTO grants(hash, allow) VALUES(?1, ?2)";

int store_error(struct store *s, struct err *err, const char *what)
{
	return err_text(err, EIO, "cannot %s the state database: %s", what,
			s->db ? sqlite3_errmsg(s->db) : "out of memory");
}

bool store_again(struct store *s, int rc)
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

int store_exec(struct store *s, const char *sql, const char *what, struct err *err)
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

/* Ends what a crash left open. */
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
	/* Of one that was killed between the two, a grant without a row. */
	return store_exec(s,
			  "DELETE FROM grants WHERE NOT EXISTS"
			  " (SELECT 1 FROM sandboxes WHERE grant_id=grants.id)",
			  "update", err);
}

static int store_prepare(struct store *s, struct err *err)
{
	const struct {
		sqlite3_stmt **st;
		const char *sql;
	} all[] = {{&s->insert, insert_sql},       {&s->end, end_sql},
		   {&s->find, find_sql},           {&s->deleted, deleted_sql},
		   {&s->children, children_sql},   {&s->merged, merged_sql},
		   {&s->renamed, renamed_sql},     {&s->egress, egress_sql},
		   {&s->details, details_sql},     {&s->grant, grant_sql},
		   {&s->grant_new, grant_new_sql}, {&s->too_old, store_too_old_sql},
		   {&s->forget, store_forget_sql}, {&s->size, store_size_sql}};

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

int store_open(struct store *s, struct loop *loop, const char *dir, const struct store_keep *keep,
	       struct err *err)
{
	char path[4096];
	int rc;

	*s = (struct store){.lock_fd = -1, .reserve.fd = -1, .loop = loop, .keep = *keep};
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
	if (rc == 0)
		store_prune_start(s);
	else
		store_close(s);
	return rc;
}

void store_close(struct store *s)
{
	store_prune_stop(s);
	sqlite3_finalize(s->insert);
	sqlite3_finalize(s->end);
	sqlite3_finalize(s->find);
	sqlite3_finalize(s->details);
	sqlite3_finalize(s->deleted);
	sqlite3_finalize(s->children);
	sqlite3_finalize(s->merged);
	sqlite3_finalize(s->renamed);
	sqlite3_finalize(s->egress);
	sqlite3_finalize(s->grant);
	sqlite3_finalize(s->grant_new);
	sqlite3_finalize(s->too_old);
	sqlite3_finalize(s->forget);
	sqlite3_finalize(s->size);
	sqlite3_close(s->db);
	reserve_close(&s->reserve);
	close_fd(&s->lock_fd);
	*s = (struct store){.lock_fd = -1, .reserve.fd = -1};
}
