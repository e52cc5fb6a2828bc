/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the agent's frames to the event lines of an exec: the checks of what a
 * guest says about results, errors and exits, and the place where output waits
 * that the lines have no room for.
 * Not synchronised. fork: plain memory.
 */
#pragma once

#include "daemon/json_feed.h"
#include "daemon/ndjson.h"
#include "proto/frame.h"

/*
 * Output that was read and not yet taken: bytes inside the frame reader (valid
 * because no further frame is read before they are taken), or the text of a
 * result in plain mode, which is made of its JSON piece by piece.
 */
struct exec_pending {
	const uint8_t *data;
	size_t len;
	enum ndjson_stream stream;
	bool result;           /* it is the text of one */
	struct json_span left; /* of it: what is to be unescaped */
	struct buf text;       /* owned: what left points into, when that is not the frame */
	uint8_t *piece;        /* owned: what data points into then */
};

static inline bool exec_pending_any(const struct exec_pending *in)
{
	return in->len > 0 || in->left.len > 0;
}

void exec_pending_free(struct exec_pending *in);
void exec_pending_bytes(struct exec_pending *in, const struct frame *f);
/* Moves bytes into lines as far as there is room. 0 or -ENOMEM. */
__must_check int exec_pending_take(struct exec_pending *in, struct ndjson *w, int64_t ts);

/* How a command ended, as the exit event tells it. */
struct exec_exit {
	int code;
	const char *reason; /* termination_reason */
	const char *state;  /* preserved, lost; NULL: not known */
	int64_t duration_ms, bytes_dropped;
	bool truncated, log_truncated;
	int signal;     /* 0: none */
	json_t *log;    /* owned; paths in the guest, or NULL */
	json_t *denied; /* borrowed; of egress, or NULL */
};

/* The command leaves the queue (rich mode only), and its end is told within grace_ms of its
 * timeout. 0 or -ENOMEM. */
__must_check int exec_events_started(struct ndjson *w, const char *exec_id, int64_t grace_ms,
				     int64_t ts);
/* The JSON of an EVENT: 0, -EPROTO when it is not what it should be, -ENOMEM. */
__must_check int exec_events_event(struct ndjson *w, struct exec_pending *in, const uint8_t *p,
				   size_t len, int64_t ts);
/* The same of one that has come in parts: before the first of them, and when all were fed. text is
 * taken over: it is empty afterwards. */
void exec_events_feed_init(struct json_feed *f);
__must_check int exec_events_long(struct ndjson *w, struct exec_pending *in,
				  const struct json_feed *f, struct buf *text, int64_t ts);
/* A sentence of ours beside the command's output. 0 or -ENOMEM. */
__must_check int exec_events_notice(struct ndjson *w, const char *text, int64_t ts);
/*
 * EXIT: 0, -EPROTO. *cancelled: the agent says that a CANCEL of ours ended it; the reason is the
 * caller's to fill in. out->log is to be released in either case.
 */
__must_check int exec_exit_parse(const struct frame *f, struct exec_exit *out, bool *cancelled);
/* The exit event. 0 or -ENOMEM. */
__must_check int exec_events_exit(struct ndjson *w, const struct exec_exit *x, int64_t ts);
/* A command that ended through no doing of its own: "podflare: text" on stderr, then the exit. */
__must_check int exec_events_failed(struct ndjson *w, const char *text, const struct exec_exit *x,
				    int64_t ts);
