/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for the disk, beside the loop. The loop's connection is synchronous=OFF and has no
 * checkpoints: it writes to the page cache, nothing else. What SQLite would do in the middle of a
 * commit is done here, by a connection of its own with synchronous=NORMAL and in a thread that is
 * there only as long as that takes:
 *
 * - when the log has STORE_LOG_PAGES, and when it has STORE_LOG_STEP more than when that was done
 *   last: the log is synced, its pages are written into the database, and that is synced (a passive
 *   checkpoint: nobody waits for it). Where nothing was committed meanwhile, the next commit begins
 *   the log anew;
 * - when it was begun anew: it is synced, so that a power failure cannot leave pages of the old one
 *   between those of the new one. Until then it could, for some milliseconds; the database that
 *   comes of that is found damaged at the next start (store.c).
 *
 * On a slow disk something was committed meanwhile, each time, and the log would get longer and
 * longer. With STORE_LOG_MOST pages the loop writes back the rest of it, to the page cache, when
 * the thread has done the most of it; then both files are synced by a thread, and until they are,
 * it is as above. Forgetting much (store_prune.c) is in no hurry, and waits earlier.
 *
 * A daemon that is killed loses nothing by that: the page cache is the kernel's. A power failure
 * loses the last rows, as with synchronous=NORMAL.
 *
 * Invariant: while `running`, db, code, rc, seen and written are the thread's. The thread has every
 * signal blocked: signals are the loop's.
 */
#define _GNU_SOURCE
#include "daemon/limits.h"
#include "daemon/store_impl.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/thread.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

/* Its own error is asked for: sqlite3_system_errno() is that of an earlier call. */
static int sync_file(struct store_sync *y, sqlite3_file *file)
{
	int error = 0;

	if (!file || !file->pMethods)
		return 0;
	y->code = file->pMethods->xSync(file, SQLITE_SYNC_NORMAL);
	if (y->code == SQLITE_OK)
		return 0;
	if (file->pMethods->xFileControl(file, SQLITE_FCNTL_LAST_ERRNO, &error) != SQLITE_OK)
		error = EIO;
	return error == ENOSPC || error == EDQUOT ? -ENOSPC : -EIO;
}

static int sync_one_of(struct store_sync *y, int which)
{
	sqlite3_file *file = NULL;

	y->code = sqlite3_file_control(y->db, NULL, which, &file);
	return y->code == SQLITE_OK ? sync_file(y, file) : -EIO;
}

static int sync_checkpoint(struct store_sync *y, sqlite3 *db)
{
	y->code = sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_PASSIVE, &y->seen,
					    &y->written);
	if ((y->code & 0xff) == SQLITE_BUSY) /* somebody else is at it */
		y->code = SQLITE_OK;
	return y->code == SQLITE_OK ? 0 : -store_errno(db, y->code);
}

static int sync_files(struct store_sync *y)
{
	int rc = sync_one_of(y, SQLITE_FCNTL_JOURNAL_POINTER);

	if (rc == 0 && y->database)
		rc = sync_one_of(y, SQLITE_FCNTL_FILE_POINTER);
	return rc == 0 && y->checkpoint ? sync_checkpoint(y, y->db) : rc;
}

static void *sync_run(void *arg)
{
	struct store_sync *y = arg;
	uint64_t one = 1;

	y->rc = sync_files(y);
	/* Cannot fail: the counter of an eventfd has room for one. */
	(void)!io_write_some(y->src.fd, &one, sizeof(one));
	return NULL;
}

/* Without a thread it is for the next commit to try. */
static void sync_begin(struct store *s)
{
	struct store_sync *y = &s->sync;
	int rc;

	y->checkpoint = y->checkpoint_wanted;
	y->database = y->database_wanted;
	rc = thread_start(&y->thread, sync_run, y);
	if (rc) {
		log_debug("no thread for the state database: %s", strerror(rc));
		return;
	}
	y->running = true;
	y->wanted = y->checkpoint_wanted = y->database_wanted = false;
}

static void sync_result(struct store *s)
{
	struct store_sync *y = &s->sync;

	if (y->rc == 0) {
		y->failed = false;
	} else if (y->rc == -EUCLEAN) {
		store_condemn(s);
	} else if (y->rc == -ENOSPC && reserve_give(&s->reserve, 0)) {
		y->wanted = y->checkpoint_wanted = true;
		y->database_wanted |= y->database;
	} else if (!y->failed) {
		y->failed = true;
		log_error("the state database cannot be written to its disk: %s",
			  sqlite3_errstr(y->code));
	}
}

static bool sync_got_all(const struct store_sync *y)
{
	return y->rc == 0 && y->seen == y->pages && y->written == y->pages;
}

/* The thread has tried a checkpoint. Nobody commits now: what the log has left gets no more. */
static void sync_rest(struct store *s)
{
	struct store_sync *y = &s->sync;

	y->tried = y->pages;
	if (y->rc == 0 && !sync_got_all(y) && y->pages >= STORE_LOG_MOST) {
		y->rc = sync_checkpoint(y, s->db);
		y->wanted = y->database_wanted = true;
		sync_result(s);
	}
	y->all = sync_got_all(y);
}

static void sync_on_event(struct loop_src *src, uint32_t events)
{
	struct store *s = src->arg;
	uint64_t n;

	(void)events;
	(void)!io_read_some(src->fd, &n, sizeof(n));
	if (!s->sync.running)
		return;
	pthread_join(s->sync.thread, NULL);
	s->sync.running = false;
	sync_result(s);
	if (s->sync.checkpoint)
		sync_rest(s);
	if (s->sync.wanted)
		sync_begin(s);
}

void store_sync_soon(struct store *s, bool checkpoint)
{
	if (!s->sync.db)
		return;
	s->sync.wanted = true;
	s->sync.checkpoint_wanted |= checkpoint;
	if (!s->sync.running)
		sync_begin(s);
}

/* The log has so many pages now. */
static int sync_on_commit(void *arg, sqlite3 *db, const char *name, int pages)
{
	struct store *s = arg;
	struct store_sync *y = &s->sync;
	bool anew = y->first || pages < y->pages, due;

	(void)db;
	(void)name;
	y->pages = pages;
	y->first = y->all = false;
	if (anew)
		y->tried = 0;
	/* What is committed during one asks for none: there is a pause between them. */
	due = pages >= STORE_LOG_PAGES && pages - y->tried >= STORE_LOG_STEP &&
	      !(y->running && y->checkpoint);
	if (anew || due || y->wanted)
		store_sync_soon(s, due);
	return SQLITE_OK;
}

bool store_log_long(struct store *s)
{
	const struct store_sync *y = &s->sync;

	if (y->pages < STORE_LOG_MANY || y->all)
		return false;
	if (!y->running)
		store_sync_soon(s, true);
	return true;
}

int store_sync_start(struct store *s, const char *path, struct err *err)
{
	static const char own[] = "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;"
				  " SELECT value FROM salt;"; /* which opens the log */
	struct store_sync *y = &s->sync;
	_cleanup_fd int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int rc;

	/* The first commit may begin the log anew. */
	*y = (struct store_sync){.first = true};
	y->src = (struct loop_src){.fd = -1, .fn = sync_on_event, .arg = s};
	rc = fd < 0 ? -errno : loop_add(s->loop, &y->src, fd, EPOLLIN);
	if (rc < 0)
		return err_set(err, -rc, "cannot watch the thread of the state database");
	take_fd(&fd);
	if (sqlite3_open_v2(path, &y->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW, NULL) !=
		    SQLITE_OK ||
	    sqlite3_exec(y->db, own, NULL, NULL, NULL) != SQLITE_OK)
		return err_text(err, EIO, "cannot open the state database again: %s",
				y->db ? sqlite3_errmsg(y->db) : "out of memory");
	sqlite3_extended_result_codes(y->db, 1);
	rc = store_exec(s, "PRAGMA synchronous=OFF; PRAGMA journal_size_limit=" STORE_LOG_KEPT ";",
			"open", err);
	if (rc == 0)
		sqlite3_wal_hook(s->db, sync_on_commit, s); /* instead of checkpoints */
	return rc;
}

void store_sync_stop(struct store *s)
{
	struct store_sync *y = &s->sync;
	int fd = y->src.fd;

	if (!y->src.fn)
		return;
	if (y->running)
		pthread_join(y->thread, NULL);
	y->running = false;
	loop_del(&y->src);
	close_fd(&fd);
	y->src = (struct loop_src){.fd = -1};
}
