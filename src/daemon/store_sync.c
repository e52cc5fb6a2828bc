/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for the disk, beside the loop. The loop's connection is synchronous=OFF and has no
 * checkpoints: it writes to the page cache, nothing else. What SQLite would do in the middle of a
 * commit is done here, by a connection of its own with synchronous=NORMAL and in a thread that is
 * there only as long as that takes:
 *
 * - when the log has STORE_LOG_PAGES: the log is synced, its pages are written into the database,
 *   and that is synced (a passive checkpoint: nobody waits for it). The next commit then begins the
 *   log anew;
 * - when it was begun anew: it is synced, so that a power failure cannot leave pages of the old one
 *   between those of the new one. Until then it could, for some milliseconds; the database that
 *   comes of that is found damaged at the next start (store.c).
 *
 * A daemon that is killed loses nothing by that: the page cache is the kernel's. A power failure
 * loses the last rows, as with synchronous=NORMAL.
 *
 * Invariant: while `running`, db, code and rc are the thread's. The thread has every signal
 * blocked: signals are the loop's.
 */
#define _GNU_SOURCE
#include "daemon/limits.h"
#include "daemon/store_impl.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/thread.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/eventfd.h>

static int sync_files(struct store_sync *y)
{
	sqlite3_file *log = NULL;
	int code = sqlite3_file_control(y->db, NULL, SQLITE_FCNTL_JOURNAL_POINTER, &log);

	if (code == SQLITE_OK && log && log->pMethods)
		code = log->pMethods->xSync(log, SQLITE_SYNC_NORMAL);
	if (code == SQLITE_OK && y->checkpoint)
		code = sqlite3_wal_checkpoint_v2(y->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL,
						 NULL);
	return (code & 0xff) == SQLITE_BUSY ? SQLITE_OK : code; /* somebody else is at it */
}

static void *sync_run(void *arg)
{
	struct store_sync *y = arg;
	uint64_t one = 1;

	y->code = sync_files(y);
	y->rc = y->code == SQLITE_OK ? 0 : -store_errno(y->db, y->code);
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
	rc = thread_start(&y->thread, sync_run, y);
	if (rc) {
		log_debug("no thread for the state database: %s", strerror(rc));
		return;
	}
	y->running = true;
	y->wanted = y->checkpoint_wanted = false;
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
	} else if (!y->failed) {
		y->failed = true;
		log_error("the state database cannot be written to its disk: %s",
			  sqlite3_errstr(y->code));
	}
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
	bool anew = pages < s->sync.pages;

	(void)db;
	(void)name;
	s->sync.pages = pages;
	if (anew || pages >= STORE_LOG_PAGES || s->sync.wanted)
		store_sync_soon(s, pages >= STORE_LOG_PAGES);
	return SQLITE_OK;
}

int store_sync_start(struct store *s, const char *path, struct err *err)
{
	static const char own[] = "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;"
				  " SELECT value FROM salt;"; /* which opens the log */
	struct store_sync *y = &s->sync;
	_cleanup_fd int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int rc;

	/* The first commit may begin the log anew. */
	*y = (struct store_sync){.pages = INT_MAX};
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
	rc = store_exec(s, "PRAGMA synchronous=OFF;", "open", err);
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
