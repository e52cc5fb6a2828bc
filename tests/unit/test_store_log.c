/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log of the state database while its disk is slow, or fails: how long it gets, who waits, and
 * what an error is taken for. The disk is fsync() and fdatasync() below, which SQLite finds first.
 */
#define _GNU_SOURCE
#include "daemon/limits.h"
#include "daemon/store_impl.h"
#include "lib/io.h"
#include "tree.h"
#include "unit.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* --- the disk ---------------------------------------------------------------------------- */

static struct {
	atomic_int ms;    /* that a sync takes */
	atomic_int of_db; /* errno of the database's, and of its log's; 0: it works */
	atomic_int of_log;
	atomic_uint by_loop; /* syncs of the thread that has the loop */
	atomic_uint by_others;
} disk;

static int sync_of(int fd)
{
	struct timespec ts = {0, atomic_load(&disk.ms) * 1000000L};
	char link[40], name[4096];
	ssize_t n;
	int error;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, name, sizeof(name));
	error = n > 4 && memcmp(name + n - 4, "-wal", 4) == 0 ? atomic_load(&disk.of_log)
							      : atomic_load(&disk.of_db);
	nanosleep(&ts, NULL);
	atomic_fetch_add(gettid() == getpid() ? &disk.by_loop : &disk.by_others, 1);
	errno = error;
	return error ? -1 : 0;
}

EXPORT int fsync(int fd)
{
	return sync_of(fd);
}

EXPORT int fdatasync(int fd)
{
	return sync_of(fd);
}

/* --- a store, and who writes to it ------------------------------------------------------- */

struct world {
	char dir[40];
	struct loop loop;
	struct store store;
	unsigned int n; /* rows so far */
	off_t most;     /* that the log has had */
	json_t *metadata;
};

static void setup(struct world *w, uint32_t keep_mib)
{
	const struct store_keep keep = {.days = 90, .mib = keep_mib};
	char text[16001];
	struct err err = {0};

	*w = (struct world){.dir = "/tmp/podflare-store-XXXXXX"};
	memset(text, 'm', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	w->metadata = json_pack("{s:s}", "k", text);
	assert_non_null(w->metadata);
	assert_non_null(mkdtemp(w->dir));
	assert_int_equal(loop_init(&w->loop), 0);
	assert_int_equal(store_open(&w->store, &w->loop, w->dir, &keep, &err), 0);
	atomic_store(&disk.by_loop, 0);
	atomic_store(&disk.by_others, 0);
}

static off_t size_of(const struct world *w, const char *name)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s", w->dir, name);
	return stat(path, &st) == 0 ? st.st_size : 0;
}

static void turn(struct world *w)
{
	off_t now = size_of(w, "podflare.db-wal");

	loop_run_once(&w->loop, 0);
	w->most = now > w->most ? now : w->most;
	usleep(1000);
}

/* One that is made and has ended. */
static void put_row(struct world *w)
{
	struct store_row row = {.template = "x", .memory_mib = 1, .vcpus = 1, .disk_mib = 64};

	snprintf(row.id, sizeof(row.id), "sbx_%032x", w->n++ * 2654435761u);
	row.metadata = w->metadata;
	assert_int_equal(store_insert(&w->store, &row), 0);
	store_end(&w->store, row.id, 1000 + (int64_t)w->n, 1, "closed", false);
}

static int64_t number(struct world *w, const char *sql)
{
	sqlite3_stmt *st;
	int64_t n;

	assert_int_equal(sqlite3_prepare_v2(w->store.db, sql, -1, &st, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(st), SQLITE_ROW);
	n = sqlite3_column_int64(st, 0);
	sqlite3_finalize(st);
	return n;
}

/* Nothing has been damaged, nobody has waited; what is closed can be opened. */
static void teardown(struct world *w, int64_t rows)
{
	const struct store_keep keep = {.days = 40000, .mib = 1024};
	struct err err = {0};

	assert_int_equal(atomic_load(&disk.by_loop), 0);
	atomic_store(&disk.ms, 0);
	store_close(&w->store);
	assert_int_equal(store_open(&w->store, &w->loop, w->dir, &keep, &err), 0);
	assert_int_equal(number(w, "SELECT count(*) FROM sandboxes"), rows);
	assert_int_equal(number(w, "SELECT count(*) FROM pragma_quick_check WHERE "
				   "quick_check <> 'ok'"),
			 0);
	store_close(&w->store);
	loop_free(&w->loop);
	json_decref(w->metadata);
	assert_int_equal(tree_remove(w->dir), 0);
}

/* --- tests ------------------------------------------------------------------------------- */

/* A checkpoint takes longer than the time between two commits: none ends with nothing left. */
static void test_steady_commits(void **state)
{
	struct world w;

	(void)state;
	setup(&w, 1024);
	w.store.keep.days = 40000;
	atomic_store(&disk.ms, 30);
	for (int i = 0; i < 1500; i++) {
		put_row(&w);
		turn(&w);
	}
	assert_true(w.most > 4 << 20);
	assert_true(w.most < 16 << 20);
	assert_true(size_of(&w, "podflare.db") > 16 << 20);
	teardown(&w, 1500);
}

/* Forgetting much is not in a hurry: the log is written back in between, and gets short again. */
static void test_forgetting(void **state)
{
	struct world w;
	int64_t left;

	(void)state;
	setup(&w, 1024);
	w.store.keep.days = 40000;
	assert_int_equal(sqlite3_exec(w.store.db, "BEGIN", NULL, NULL, NULL), SQLITE_OK);
	for (int i = 0; i < 2000; i++)
		put_row(&w);
	assert_int_equal(sqlite3_exec(w.store.db, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
	for (int i = 0; i < 100 || w.store.sync.running; i++)
		turn(&w);
	w.most = 0;
	atomic_store(&disk.ms, 100);
	w.store.keep.days = 90;
	put_row(&w); /* which begins the log anew */
	store_prune_soon(&w.store);
	for (int i = 0; i < 60000 && (left = number(&w, "SELECT count(*) FROM sandboxes")); i++)
		turn(&w);
	assert_int_equal(left, 0);
	put_row(&w);
	assert_true(w.most < 16 << 20);
	assert_true(size_of(&w, "podflare.db-wal") <= 12 << 20);
	teardown(&w, 1);
}

/* One sync finds no room, the next one an error: that is no reason to give up the reserve. */
static void test_an_error_is_not_the_one_before(void **state)
{
	struct world w;
	uint64_t had;

	(void)state;
	setup(&w, 1024);
	w.store.keep.days = 40000;
	had = w.store.reserve.have;
	assert_int_equal(had, RESERVE_BYTES);
	put_row(&w);
	atomic_store(&disk.of_db, ENOSPC);
	store_sync_soon(&w.store, true);
	for (int i = 0; i < 10000 && w.store.reserve.have == had; i++)
		turn(&w);
	assert_true(w.store.reserve.have < had);
	atomic_store(&disk.of_log, EIO);
	for (int i = 0; i < 10000 && w.store.sync.running; i++)
		turn(&w);
	had = w.store.reserve.have;
	assert_true(had > 0);
	put_row(&w);
	store_sync_soon(&w.store, true);
	for (int i = 0; i < 10000 && w.store.sync.running; i++)
		turn(&w);
	assert_int_equal(w.store.reserve.have, had);
	assert_true(w.store.sync.failed);
	/* The log's own want of room is one. */
	atomic_store(&disk.of_log, ENOSPC);
	store_sync_soon(&w.store, true);
	for (int i = 0; i < 10000 && w.store.reserve.have == had; i++)
		turn(&w);
	assert_true(w.store.reserve.have < had);
	atomic_store(&disk.of_log, 0);
	atomic_store(&disk.of_db, 0);
	for (int i = 0; i < 10000 && w.store.sync.running; i++)
		turn(&w);
	assert_false(w.store.sync.failed);
	teardown(&w, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_steady_commits),
		cmocka_unit_test(test_forgetting),
		cmocka_unit_test(test_an_error_is_not_the_one_before),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
