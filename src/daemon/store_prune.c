/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has ended is remembered for a time, and as long as there is room: a few
 * rows in one turn of the loop, then everybody else has one, and the disk, when it is
 * behind. Nothing wakes up while nothing is written.
 */
#define _GNU_SOURCE
#include "daemon/limits.h"
#include "daemon/store_impl.h"
#include "lib/io.h"
#include "lib/log.h"

/* Pages that hold something; what was freed is used again before the file grows. */
const char store_size_sql[] =
	"SELECT (p.page_count - f.freelist_count) * s.page_size FROM pragma_page_count p,"
	" pragma_freelist_count f, pragma_page_size s";
const char store_too_old_sql[] = "SELECT 1 FROM sandboxes WHERE ended_ms < ?1 LIMIT 1";
/* Those that ended first. */
const char store_forget_sql[] = "DELETE FROM sandboxes WHERE id IN (SELECT id FROM sandboxes"
				" WHERE ended_ms < ?1 ORDER BY ended_ms LIMIT ?2)";

/* The one number that a statement gives, or 0. */
static int64_t prune_number(sqlite3_stmt *st)
{
	int64_t n = sqlite3_step(st) == SQLITE_ROW ? sqlite3_column_int64(st, 0) : 0;

	sqlite3_reset(st);
	sqlite3_clear_bindings(st);
	return n;
}

/* When those ended that may be forgotten now: before this; 0: none. */
static int64_t prune_before(struct store *s)
{
	int64_t old = (int64_t)(io_realtime_ns() / 1000000) - s->keep.days * 86400000LL;

	if (prune_number(s->size) > (int64_t)s->keep.mib << 20)
		return INT64_MAX;
	sqlite3_bind_int64(s->too_old, 1, old);
	return prune_number(s->too_old) ? old : 0;
}

static void prune_on_timer(struct loop_timer *t)
{
	struct store *s = t->arg;
	int64_t before = prune_before(s);

	if (!before)
		return;
	if (store_log_long(s)) {
		store_prune_soon(s);
		return;
	}
	sqlite3_bind_int64(s->forget, 1, before);
	sqlite3_bind_int64(s->forget, 2, STORE_PRUNE_ROWS);
	if (store_run(s, s->forget) < 0)
		return; /* when the next row is written, again */
	if (sqlite3_changes(s->db))
		loop_timer_set(s->loop, t, STORE_PRUNE_AGAIN_NS);
}

void store_prune_start(struct store *s)
{
	s->prune = (struct loop_timer){.fn = prune_on_timer, .arg = s};
	store_prune_soon(s);
}

void store_prune_stop(struct store *s)
{
	loop_timer_cancel(&s->prune);
}

void store_prune_soon(struct store *s)
{
	if (!loop_timer_armed(&s->prune))
		loop_timer_set(s->loop, &s->prune, STORE_PRUNE_NS);
}
