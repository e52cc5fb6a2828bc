/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The database as its parts see it: store.c (opening it), store_rows.c (what is
 * written and read of sandboxes), store_prune.c (forgetting). Private to these.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/store.h"

extern const char store_too_old_sql[], store_forget_sql[], store_size_sql[];

int store_error(struct store *s, struct err *err, const char *what);
/* Whether it failed for want of room, and some was made: the same again. */
bool store_again(struct store *s, int rc);
__must_check int store_exec(struct store *s, const char *sql, const char *what, struct err *err);
/* Runs a bound statement that returns no rows, and unbinds it. 0 or -EIO (logged). */
__must_check int store_run(struct store *s, sqlite3_stmt *st);

/* Forgets what is too old or too much, in steps, from now on. */
void store_prune_start(struct store *s);
void store_prune_stop(struct store *s);
/* A row was added, or one that was there may be forgotten now. */
void store_prune_soon(struct store *s);
