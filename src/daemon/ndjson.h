/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event lines of one exec (application/x-ndjson): takes the bytes that a
 * command wrote and the agent's events, keeps finished lines until the client
 * takes them.
 *
 * Plain mode: one event a line of output, without its newline; a partial line
 * is held until its newline, until it is NDJSON_HELD bytes long, or until the
 * end; ill-formed UTF-8 becomes U+FFFD. Rich mode: one event a piece, with the
 * exact text; a piece that is not UTF-8 is base64 and says so; an unfinished
 * sequence at the end of a piece is held and joined with what follows.
 *
 * Bounded: when ndjson_full(), output is not taken; the caller keeps it (and
 * stops reading its source) until lines were consumed. An event is always taken,
 * so a caller that makes none when it is full never has more than one, of
 * LIMIT_EVENT bytes at most, behind the rest. One that may be that long is kept as
 * it came, and becomes a line in pieces, as ndjson_take() asks for them; until it
 * has, it is full, and what is told nevertheless comes behind it. Every call returns
 * -ENOMEM when memory is short; the stream should then be ended.
 * Not synchronised. fork: plain memory.
 */
#pragma once

#include "daemon/json_span.h"
#include "lib/buf.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum ndjson_stream { NDJSON_STDOUT, NDJSON_STDERR };

#define NDJSON_LONG_VALUES 3u

/* An event that becomes a line in pieces. */
struct ndjson_long {
	bool active;
	struct buf text; /* owned: where its values are */
	const char *name[NDJSON_LONG_VALUES];
	struct json_span value[NDJSON_LONG_VALUES];
	size_t n, i; /* values; of these, that were begun */
	struct json_copy copy;
	char tail[64];
};

struct ndjson {
	bool rich;
	bool offsets;       /* output events tell the position behind them */
	uint64_t offset[2]; /* by enum ndjson_stream: of the output that was emitted */
	uint64_t seq;
	struct buf out; /* finished lines; and the beginning of a long one */
	struct ndjson_long big;
	struct buf behind;  /* lines that come after it */
	struct buf held[2]; /* by enum ndjson_stream */
};

void ndjson_init(struct ndjson *w, bool rich);
void ndjson_free(struct ndjson *w);

bool ndjson_full(const struct ndjson *w);
/* There is room for much more. */
bool ndjson_low(const struct ndjson *w);
/* All that there is to take is in out. */
static inline bool ndjson_whole(const struct ndjson *w)
{
	return !w->big.active;
}
/* Bytes of memory that lines take. */
size_t ndjson_size(const struct ndjson *w);

/* Bytes of the command: how many were taken (fewer than len when it became full), or -ENOMEM. */
ssize_t ndjson_output(struct ndjson *w, enum ndjson_stream s, const uint8_t *p, size_t len,
		      int64_t ts);

/* Emits what is held of a stream. Needed before an event that is not of this stream, and at the
 * end. */
__must_check int ndjson_break(struct ndjson *w, enum ndjson_stream s, int64_t ts);

/* One line of text of our own, e.g. why a command ended. Both modes. */
__must_check int ndjson_note(struct ndjson *w, enum ndjson_stream s, const char *text, int64_t ts);

/*
 * An event whose members are those of `fields` (an object; may be NULL),
 * between "type" and "seq". Rich mode only.
 */
__must_check int ndjson_event(struct ndjson *w, const char *type, const json_t *fields, int64_t ts);

/* The same with values that a guest wrote, which were checked (json_span.h). Absent ones are left
 * out. */
__must_check int ndjson_event_spans(struct ndjson *w, const char *type, const char *const *names,
				    const struct json_span *values, size_t n, int64_t ts);

/*
 * The same of values within text, which is taken over: it is empty afterwards, whatever came of it.
 * names stay the caller's, NDJSON_LONG_VALUES at most.
 */
__must_check int ndjson_event_long(struct ndjson *w, const char *type, const char *const *names,
				   const struct json_span *values, size_t n, struct buf *text,
				   int64_t ts);

/* Takes bytes of lines, max at most: how many; 0: there are none. Or -ENOMEM. */
ssize_t ndjson_take(struct ndjson *w, void *out, size_t max);
/* Lines were taken from out: gives memory back that a large event had needed. */
void ndjson_taken(struct ndjson *w);

/* The last line. `extra`: members that rich mode adds (may be NULL). Emits what is held first. */
__must_check int ndjson_exit(struct ndjson *w, int code, const json_t *extra, int64_t ts);
