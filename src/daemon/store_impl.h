/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The database as its parts see it: store.c (opening it), store_rows.c (what is
 * written and read of sandboxes), store_prune.c (forgetting), store_sync.c (waiting
 * for the disk). Private to these.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/store.h"

extern const char store_too_old_sql[], store_forget_sql[], store_size_sql[];

/* What an error of SQLite is about: EUCLEAN (it is damaged), ENOSPC or EIO. */
int store_errno(sqlite3 *db, int code);
int store_error(struct store *s, struct err *err, const char *what);
/* Whether it failed for want of room, and some was made: the same again. */
bool store_again(struct store *s, int rc);
__must_check int store_exec(struct store *s, const char *sql, const char *what, struct err *err);
/* Runs a bound statement that returns no rows, and unbinds it. 0 or -EIO (logged). */
__must_check int store_run(struct store *s, sqlite3_stmt *st);

/* It failed just now, while it was in use: that is logged, and damage is remembered. */
void store_failed(struct store *s, const char *what);
/* It is damaged: the next start moves it aside. */
void store_condemn(struct store *s);

/*
 * From now on nothing in the loop's thread waits for the disk. stop: what is under way is waited
 * for; the connection is to be closed behind the loop's, so that it has the last checkpoint.
 */
__must_check int store_sync_start(struct store *s, const char *path, struct err *err);
void store_sync_stop(struct store *s);
/* The log is synced in a thread; and written back, too. */
void store_sync_soon(struct store *s, bool checkpoint);
/* The log is so long that what is in no hurry is to be written later; it is being written back. */
bool store_log_long(struct store *s);

/* Forgets what is too old or too much, in steps, from now on. */
void store_prune_start(struct store *s);
void store_prune_stop(struct store *s);
/* A row was added, or one that was there may be forgotten now. */
void store_prune_soon(struct store *s);
