/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening the database: as often as there is something to make room with, and anew
 * when what is there is of no use. While it is opened, its disk is waited for in the
 * loop's thread: nobody is served yet. Afterwards never (store_sync.c).
 */
#define _GNU_SOURCE
#include "daemon/store.h"
#include "daemon/limits.h"
#include "daemon/store_impl.h"
#include "lib/cleanup.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/owndir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

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

int store_errno(sqlite3 *db, int code)
{
	int error = db ? sqlite3_system_errno(db) : 0;

	switch (code & 0xff) {
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return EUCLEAN;
	case SQLITE_FULL:
		return ENOSPC;
	case SQLITE_IOERR:
		if (code == SQLITE_IOERR_CORRUPTFS) /* it could not be read */
			return EUCLEAN;
		return error == ENOSPC || error == EDQUOT ? ENOSPC : EIO;
	default:
		return EIO;
	}
}

int store_error(struct store *s, struct err *err, const char *what)
{
	return err_text(err, s->db ? store_errno(s->db, sqlite3_errcode(s->db)) : EIO,
			"cannot %s the state database: %s", what,
			s->db ? sqlite3_errmsg(s->db) : "out of memory");
}

/* A file that says so, for the next start. False: a name too long. */
static bool store_mark(const char *dir, char path[static 4096])
{
	return snprintf(path, 4096, "%s/podflare.db-damaged", dir) < 4096;
}

void store_condemn(struct store *s)
{
	_cleanup_fd int fd = -1;
	char path[4096];

	if (s->condemned)
		return;
	s->condemned = true;
	if (store_mark(s->dir, path))
		fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	log_error("the state database is damaged: the next start moves it aside; until then "
		  "sandboxes may fail to be made%s",
		  fd < 0 ? " (it cannot be marked: move podflare.db* aside by hand)" : "");
}

void store_failed(struct store *s, const char *what)
{
	log_error("cannot %s the state database: %s", what, sqlite3_errmsg(s->db));
	if (store_errno(s->db, sqlite3_errcode(s->db)) == EUCLEAN)
		store_condemn(s);
}

bool store_again(struct store *s, int rc)
{
	if (store_errno(s->db, rc) != ENOSPC || !reserve_give(&s->reserve, 0))
		return false;
	/* Then the log begins anew where it has room already; only the rows themselves need more.
	 */
	store_sync_soon(s, true);
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
	int rc;

	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return err_set(err, errno, "cannot make the state directory %s", dir);
	rc = owndir_check("the state directory", dir, err);
	if (rc < 0)
		return rc;
	if (snprintf(path, sizeof(path), "%s/lock", dir) >= (int)sizeof(path) - 16)
		return err_text(err, ENAMETOOLONG, "the state directory's name is too long");
	s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
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
	if (*version >= 0)
		return 0;
	return sqlite3_errcode(s->db) == SQLITE_OK || sqlite3_errcode(s->db) == SQLITE_ROW
		       ? err_text(err, EUCLEAN, "the state database is of no version (%d)",
				  *version)
		       : store_error(s, err, "read");
}

/*
 * No VM outlives its daemon: a database has only memories in it. *to: what it is called now, with
 * this word in it.
 */
static int store_aside(struct store *s, const char *path, const char *word, char to[static 4300],
		       struct err *err)
{
	static const char *const tails[] = {"", "-wal", "-shm"};
	long long now = (long long)(io_realtime_ns() / 1000000);
	char from[4200], tail_to[4310];

	snprintf(to, 4300, "%s.%s-%lld", path, word, now);
	for (size_t i = 0; i < ARRAY_SIZE(tails); i++) {
		snprintf(from, sizeof(from), "%s%s", path, tails[i]);
		snprintf(tail_to, sizeof(tail_to), "%s%s", to, tails[i]);
		if (rename(from, tail_to) < 0 && errno != ENOENT)
			return err_set(err, errno, "cannot move the state database %s aside", from);
	}
	if (store_mark(s->dir, from) && unlink(from) < 0 && errno != ENOENT)
		return err_set(err, errno, "cannot remove %s", from);
	return 0;
}

static int store_connect(struct store *s, const char *path, struct err *err)
{
	const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOFOLLOW;

	if (sqlite3_open_v2(path, &s->db, flags, NULL) != SQLITE_OK)
		return store_error(s, err, "open");
	sqlite3_extended_result_codes(s->db, 1);
	sqlite3_busy_timeout(s->db, STORE_BUSY_START_MS);
	return 0;
}

static void store_disconnect(struct store *s)
{
	sqlite3_stmt **all[] = {&s->insert,    &s->end,     &s->find,    &s->details, &s->deleted,
				&s->children,  &s->merged,  &s->renamed, &s->egress,  &s->grant,
				&s->grant_new, &s->too_old, &s->forget,  &s->size};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		sqlite3_finalize(*all[i]);
		*all[i] = NULL;
	}
	store_sync_stop(s);
	sqlite3_close(s->db);
	sqlite3_close(s->sync.db); /* the last one writes the log back, and syncs */
	s->db = NULL;
	s->sync = (struct store_sync){0};
}

/* Closing writes nothing: a checkpoint would spread what is wrong, or fail. */
static void store_leave_log(struct store *s)
{
	store_sync_stop(s); /* that connection is its thread's until then */
	if (s->db)
		sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	if (s->sync.db)
		sqlite3_db_config(s->sync.db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
}

/* Opens the file; one of another version gives way to a new one. */
static int store_use(struct store *s, const char *path, struct err *err)
{
	int version = -1, rc = store_connect(s, path, err);
	char word[16], to[4300];

	if (rc == 0)
		rc = store_version(s, &version, err);
	if (rc < 0 || version == STORE_VERSION || version == 0)
		return rc;
	store_disconnect(s);
	snprintf(word, sizeof(word), "v%d", version);
	rc = store_aside(s, path, word, to, err);
	if (rc < 0)
		return rc;
	log_warn("the state database is of another version (%d, not %d): moved to %s", version,
		 STORE_VERSION, to);
	return store_connect(s, path, err);
}

/* All of it is read, once: some tenths of a second for as much as there may be. */
static int store_check(struct store *s, struct err *err)
{
	sqlite3_stmt *st = NULL;
	const char *said = NULL;
	int rc = 0;

	if (sqlite3_prepare_v2(s->db, "PRAGMA quick_check(1)", -1, &st, NULL) == SQLITE_OK &&
	    sqlite3_step(st) == SQLITE_ROW)
		said = (const char *)sqlite3_column_text(st, 0);
	if (!said)
		rc = store_error(s, err, "check");
	else if (strcmp(said, "ok") != 0)
		rc = err_text(err, EUCLEAN, "%s", said);
	sqlite3_finalize(st);
	return rc;
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
	int rc = 0;

	if (sqlite3_prepare_v2(s->db, "SELECT value FROM salt", -1, &st, NULL) != SQLITE_OK ||
	    sqlite3_step(st) != SQLITE_ROW)
		rc = store_error(s, err, "read the salt of");
	else if (sqlite3_column_bytes(st, 0) != (int)sizeof(s->salt))
		rc = err_text(err, EUCLEAN, "the salt in it is none of ours");
	else
		memcpy(s->salt, sqlite3_column_blob(st, 0), sizeof(s->salt));
	sqlite3_finalize(st);
	return rc;
}

/* From the file to what is ready for use, or as far as that goes. */
static int store_begin(struct store *s, const char *path, struct err *err)
{
	int rc = store_use(s, path, err);

	if (rc == 0)
		rc = store_check(s, err);
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
		rc = store_sync_start(s, path, err);
	if (rc == 0)
		sqlite3_busy_timeout(s->db, STORE_BUSY_MS);
	/* Our statements are right: it is the tables that are not ours. */
	else if (s->db && (sqlite3_errcode(s->db) & 0xff) == SQLITE_ERROR)
		rc = -EUCLEAN;
	return rc;
}

/* What is in the way of a new one, because of what `why` says. */
static int store_replace(struct store *s, const char *path, const char *why, struct err *err)
{
	char to[4300];
	int rc = store_aside(s, path, "damaged", to, err);

	if (rc == 0)
		log_warn("the state database is damaged (%s): moved to %s", why, to);
	return rc;
}

static int store_begin_somehow(struct store *s, const char *path, struct err *err)
{
	bool replaced = false;

	for (;;) {
		struct err why = {0};
		int rc = store_begin(s, path, &why);

		if (rc == 0)
			return 0;
		store_leave_log(s);
		store_disconnect(s);
		if (rc == -ENOSPC && reserve_give(&s->reserve, 0))
			continue;
		if (rc != -EUCLEAN || replaced)
			return err_text(err, why.num, "%s", why.msg);
		rc = store_replace(s, path, why.msg, err);
		if (rc < 0)
			return rc;
		replaced = true;
	}
}

int store_open(struct store *s, struct loop *loop, const char *dir, const struct store_keep *keep,
	       struct err *err)
{
	_cleanup_free char *real = NULL;
	char path[4096], mark[4096];
	int rc;

	*s = (struct store){.lock_fd = -1, .reserve.fd = -1, .loop = loop, .keep = *keep};
	s->dir = dir;
	rc = store_lock(s, dir, err);
	if (rc == 0) {
		/* SQLite follows no link to it then, not even one in the path of the directory. */
		real = realpath(dir, NULL);
		if (!real ||
		    snprintf(path, sizeof(path), "%s/podflare.db", real) >= (int)sizeof(path) - 16)
			rc = err_set(err, real ? ENAMETOOLONG : errno,
				     "cannot use the state directory %s", dir);
	}
	if (rc == 0) {
		reserve_open(&s->reserve, loop, dir);
		if (store_mark(dir, mark) && access(mark, F_OK) == 0)
			rc = store_replace(s, path, "as was found while it was in use", err);
	}
	if (rc == 0)
		rc = store_begin_somehow(s, path, err);
	if (rc == 0)
		store_prune_start(s);
	else
		store_close(s);
	return rc;
}

void store_close(struct store *s)
{
	store_prune_stop(s);
	if (s->condemned)
		store_leave_log(s);
	store_disconnect(s);
	reserve_close(&s->reserve);
	close_fd(&s->lock_fd);
	*s = (struct store){.lock_fd = -1, .reserve.fd = -1};
}
