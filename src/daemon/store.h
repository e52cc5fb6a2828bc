/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What outlives a sandbox: SQLite (WAL) in the state directory, one row per
 * sandbox that was ever announced. It answers what became of an id (DELETE of
 * one that once lived is 204, also after a restart) and keeps why it ended. A
 * row is found by its owner only (owner.h). An allowlist is kept once, however
 * many rows have it; a deleted sandbox has none any more, and no metadata.
 * Rows that a crash left open are closed when the store is opened.
 *
 * Those that have ended are forgotten, the first to end first, when they are older
 * than keep.days, and while all that is kept is more than keep.mib.
 *
 * A database of another version of the schema is moved aside when it is opened, and
 * so is one that is damaged: what is in it are memories, and no reason not to start.
 * One that is found damaged while it is in use goes on as far as it can, and is moved
 * aside by the next start. A full disk does not stop it for a while (reserve.h).
 *
 * A lock file keeps a second daemon out of the directory. Writes are single
 * rows, tens of microseconds: done in the loop's thread, into the page cache. The disk
 * is waited for in another one (store_sync.c): a daemon that is killed has forgotten
 * nothing, a power failure loses the last rows.
 * fork: close-on-exec; VMM processes never see the database.
 */
#pragma once

#include "daemon/owner.h"
#include "daemon/reserve.h"
#include "lib/err.h"
#include "lib/loop.h"

#include <jansson.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

struct grant;

/* What ended sandboxes may take. */
struct store_keep {
	uint32_t days, mib;
};

/* store_sync.c */
struct store_sync {
	sqlite3 *db; /* a connection of its own; NULL: it was not started */
	struct loop_src src;
	pthread_t thread;
	bool running;                            /* the thread is there */
	bool checkpoint, database;               /* it does a checkpoint; or syncs the database */
	bool wanted;                             /* one more, when it is done, ... */
	bool checkpoint_wanted, database_wanted; /* ... with these */
	bool failed;                             /* the last one, and that was logged */
	bool first;                              /* nothing was committed yet */
	bool all;                                /* the database has all of the log */
	int pages, tried;                        /* of the log; when a checkpoint ended last */
	int seen, written; /* of a checkpoint: pages of the log then, and done */
	int code, rc;      /* what became of it: SQLite's, and ours */
};

struct store {
	sqlite3 *db;
	sqlite3_stmt *insert, *end, *find, *details, *deleted, *children, *merged, *renamed;
	sqlite3_stmt *egress, *grant, *grant_new, *too_old, *forget, *size;
	struct loop *loop;
	struct loop_timer prune;
	struct store_keep keep;
	struct reserve reserve;
	struct store_sync sync;
	const char *dir;
	bool condemned;
	uint8_t salt[OWNER_SALT_LEN]; /* of the owners' names: as old as the database */
	int lock_fd;
};

/* A row. Members that are owned: free with store_row_free(). */
struct store_row {
	char id[64];
	char owner[OWNER_LEN + 1]; /* of store_insert() */
	char template[64];
	char parent[64]; /* "" = made from a template */
	uint32_t memory_mib, vcpus, disk_mib, generation;
	int64_t created_ms, ended_ms; /* 0 = alive */
	uint64_t exec_count;
	char reason[1400]; /* why it ended */
	bool deleted;      /* the client has deleted it */
	json_t *metadata;  /* of store_insert(): borrowed; of store_details(): owned, may be NULL */
	json_t *egress; /* of store_details(): owned, may be NULL: what it might reach, an array */
	const struct grant *grant; /* of store_insert() and store_merge(): the same, borrowed */
};

/* dir has to outlive it. */
int store_open(struct store *s, struct loop *loop, const char *dir, const struct store_keep *keep,
	       struct err *err);
void store_close(struct store *s);

/* A sandbox is announced. 0 or -EIO (logged). */
int store_insert(struct store *s, const struct store_row *row);
/* It has ended. Failures are logged: they must not keep a VM alive. */
void store_end(struct store *s, const char *id, int64_t ended_ms, uint64_t exec_count,
	       const char *reason, bool deleted);
/* What it may reach is another list (NULL: nothing). */
void store_egress(struct store *s, const char *id, const struct grant *g);
/* The client deleted one that had ended by itself. */
void store_delete(struct store *s, const char *id);
/*
 * The VM of `winner` goes on as row->id: that row's parent, generation, egress and sizes become
 * those given, the children of winner are row->id's, winner is gone. 0 or -EIO.
 */
int store_merge(struct store *s, const struct store_row *row, const char *winner, int64_t now_ms);
/*
 * 1 and the row without metadata and egress, 0 when no such id of this owner ever lived, -EIO.
 * Takes microseconds, whatever the row has.
 */
int store_find(struct store *s, const char *id, const char *owner, struct store_row *row);
/* Adds these two to a row that was found: some milliseconds at worst. The same. */
int store_details(struct store *s, struct store_row *row);
void store_row_free(struct store_row *row);
