/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What outlives a sandbox: SQLite (WAL) in the state directory, one row per
 * sandbox that was ever announced. It answers what became of an id (DELETE of
 * one that once lived is 204, also after a restart) and keeps why it ended. A
 * row is found by its owner only (owner.h).
 * Rows that a crash left open are closed when the store is opened. Rows older
 * than STORE_KEEP_DAYS are dropped then.
 *
 * A database of another version of the schema is moved aside. A full disk does
 * not stop it for a while (reserve.h).
 *
 * A lock file keeps a second daemon out of the directory. Writes are single
 * rows, tens of microseconds: done in the loop's thread.
 * fork: close-on-exec; VMM processes never see the database.
 */
#pragma once

#include "daemon/owner.h"
#include "daemon/reserve.h"
#include "lib/err.h"
#include "lib/loop.h"

#include <jansson.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

struct store {
	sqlite3 *db;
	sqlite3_stmt *insert, *end, *find, *deleted, *children, *merged, *renamed, *egress;
	struct reserve reserve;
	uint8_t salt[OWNER_SALT_LEN]; /* of the owners' names: as old as the database */
	int lock_fd;
};

/* A row. The strings are owned; free with store_row_free(). */
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
	json_t *metadata;  /* owned, may be NULL */
	json_t *egress;    /* owned, may be NULL: what it might reach, an array */
};

int store_open(struct store *s, struct loop *loop, const char *dir, struct err *err);
void store_close(struct store *s);

/* A sandbox is announced. 0 or -EIO (logged). */
int store_insert(struct store *s, const struct store_row *row);
/* It has ended. Failures are logged: they must not keep a VM alive. */
void store_end(struct store *s, const char *id, int64_t ended_ms, uint64_t exec_count,
	       const char *reason, bool deleted);
/* What it may reach is another list (NULL: nothing). */
void store_egress(struct store *s, const char *id, const json_t *allow);
/* The client deleted one that had ended by itself. */
void store_delete(struct store *s, const char *id);
/*
 * The VM of `winner` goes on as row->id: that row's parent, generation, egress and sizes become
 * those given, the children of winner are row->id's, winner is gone. 0 or -EIO.
 */
int store_merge(struct store *s, const struct store_row *row, const char *winner, int64_t now_ms);
/* 1 and the row, 0 when no such id of this owner ever lived, -EIO. */
int store_find(struct store *s, const char *id, const char *owner, struct store_row *row);
void store_row_free(struct store_row *row);
