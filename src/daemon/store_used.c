/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the rows of each owner take, so that it is known whose are forgotten first, and how much is
 * of sandboxes that live, which nobody can forget. It is counted by triggers, in tables of this
 * connection's own, in memory; and once over all that is there, when the database is opened.
 */
#define _GNU_SOURCE
#include "daemon/store_impl.h"

/*
 *   used    bytes of an owner's rows of sandboxes that have ended, or of all that live (owner '')
 *   lists   how many of these rows have a long allowlist: it is kept once, and counts once. Short
 *           ones are in what any row counts for.
 *   change  one row more (sign 1) or less (-1)
 */
static const char tables_sql[] =
	"PRAGMA temp_store=MEMORY;"
	"CREATE TEMP TABLE used(owner TEXT, live INTEGER, bytes INTEGER NOT NULL,"
	" PRIMARY KEY(owner, live)) WITHOUT ROWID;"
	"CREATE TEMP TABLE lists(owner TEXT, live INTEGER, id INTEGER, bytes INTEGER NOT NULL,"
	" n INTEGER NOT NULL, PRIMARY KEY(owner, live, id)) WITHOUT ROWID;"
	"CREATE TEMP VIEW long AS SELECT id, length(CAST(allow AS BLOB)) AS bytes FROM grants"
	" WHERE length(CAST(allow AS BLOB)) > 1024;"
	"CREATE TEMP VIEW rows AS SELECT iif(ended_ms IS NULL, '', owner) AS owner,"
	" ended_ms IS NULL AS live, 256 + length(CAST(metadata AS BLOB))"
	"  + ifnull(length(CAST(reason AS BLOB)), 0) AS bytes, grant_id FROM sandboxes;"
	"CREATE TEMP VIEW change AS SELECT 0 AS sign, * FROM rows;"
	"CREATE TEMP TRIGGER list_more AFTER INSERT ON lists BEGIN"
	" INSERT INTO used VALUES(new.owner, new.live, new.bytes)"
	"  ON CONFLICT DO UPDATE SET bytes=bytes+excluded.bytes; END;"
	"CREATE TEMP TRIGGER list_less AFTER DELETE ON lists BEGIN"
	" UPDATE used SET bytes=bytes-old.bytes WHERE owner=old.owner AND live=old.live; END;"
	"CREATE TEMP TRIGGER count INSTEAD OF INSERT ON change BEGIN"
	" INSERT INTO used VALUES(new.owner, new.live, new.sign*new.bytes)"
	"  ON CONFLICT DO UPDATE SET bytes=bytes+excluded.bytes;"
	" INSERT INTO lists SELECT new.owner, new.live, id, bytes, 0 FROM long"
	"  WHERE id=new.grant_id AND new.sign > 0 AND NOT EXISTS(SELECT 1 FROM lists"
	"  WHERE owner=new.owner AND live=new.live AND id=new.grant_id);"
	" UPDATE lists SET n=n+new.sign"
	"  WHERE owner=new.owner AND live=new.live AND id=new.grant_id;"
	" DELETE FROM lists"
	"  WHERE owner=new.owner AND live=new.live AND id=new.grant_id AND n=0; END;"
	"INSERT INTO change SELECT 1, owner, live, sum(bytes), NULL FROM rows GROUP BY owner, live;"
	/* Each list is looked at once, however many rows have it. */
	"WITH l AS MATERIALIZED (SELECT * FROM long)"
	" INSERT INTO lists SELECT owner, live, l.id, l.bytes, count(*)"
	" FROM rows JOIN l ON l.id=grant_id GROUP BY owner, live, l.id;";

/* A row of sandboxes, as the view above has it. */
#define ROW_SQL(r)                                                              \
	"iif(" r ".ended_ms IS NULL, '', " r ".owner), " r ".ended_ms IS NULL," \
	" 256 + length(CAST(" r ".metadata AS BLOB))"                           \
	"  + ifnull(length(CAST(" r ".reason AS BLOB)), 0), " r ".grant_id"
#define MORE_SQL " INSERT INTO change VALUES(1, " ROW_SQL("new") ");"
#define LESS_SQL " INSERT INTO change VALUES(-1, " ROW_SQL("old") ");"

static const char triggers_sql[] =
	"CREATE TEMP TRIGGER row_more AFTER INSERT ON sandboxes BEGIN" MORE_SQL " END;"
	"CREATE TEMP TRIGGER row_less AFTER DELETE ON sandboxes BEGIN" LESS_SQL " END;"
	"CREATE TEMP TRIGGER row_other AFTER UPDATE OF ended_ms, metadata, reason, grant_id"
	" ON sandboxes BEGIN" LESS_SQL MORE_SQL " END;";

const char store_living_sql[] = "SELECT total(bytes) FROM used WHERE live";
const char store_most_sql[] = "SELECT owner FROM used WHERE NOT live AND bytes > 0"
			      " ORDER BY bytes DESC LIMIT 1";

int store_used_start(struct store *s, struct err *err)
{
	int rc = store_exec(s, tables_sql, "count what is in", err);

	return rc < 0 ? rc : store_exec(s, triggers_sql, "count what is in", err);
}
