/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a request frame starts: its JSON is parsed (request_*.c), and the module
 * that does it gets the values.
 */
#include "agent/request.h"
#include "agent/agent.h"
#include "agent/changes.h"
#include "agent/contexts.h"
#include "agent/exec.h"
#include "agent/files.h"
#include "agent/kept.h"
#include "agent/status.h"
#include "agent/stream.h"

#include <errno.h>
#include <string.h>

static void request_begin_exec(struct stream *s, const struct frame *f)
{
	struct request_exec r;
	struct err err;

	/* The body follows in any case: a refused EXEC or PUT has its DATA discarded. */
	s->body = true;
	if (request_parse_exec(f->payload, f->len, &r, &err) < 0)
		stream_fail(s, &err);
	else
		exec_begin(s, &r);
}

static void request_begin_file(struct stream *s, const struct frame *f)
{
	struct request_file r;
	struct err err;

	s->body = f->type == FRAME_PUT;
	if (request_parse_file(f->payload, f->len, &r, &err) < 0)
		stream_fail(s, &err);
	else if (f->type == FRAME_PUT)
		put_begin(s, &r);
	else
		get_begin(s, &r);
}

static void request_begin_fileop(struct stream *s, const struct frame *f)
{
	struct request_fileop r;
	struct err err;

	if (request_parse_fileop(f->payload, f->len, &r, &err) < 0) {
		stream_fail(s, &err);
		return;
	}
	fileop_begin(s, &r);
	request_fileop_free(&r);
}

static void request_begin_changes(struct stream *s, const struct frame *f)
{
	struct request_changes r;
	struct err err;

	if (request_parse_changes(f->payload, f->len, &r, &err) < 0) {
		stream_fail(s, &err);
		return;
	}
	changes_begin(s, &r);
	request_changes_free(&r);
}

static void request_begin_context(struct stream *s, const struct frame *f)
{
	struct request_context r;
	struct err err;

	if (request_parse_context(f->payload, f->len, &r, &err) < 0) {
		stream_fail(s, &err);
		return;
	}
	contexts_request(s, &r);
	request_context_free(&r);
}

static void request_begin_command(struct stream *s, const struct frame *f)
{
	struct request_command r;
	struct err err;

	if (request_parse_command(f->payload, f->len, &r, &err) < 0) {
		stream_fail(s, &err);
		return;
	}
	kept_request(s, &r);
	request_command_free(&r);
}

static void request_begin_renew(struct stream *s, const struct frame *f)
{
	struct request_renew r;
	struct err err;

	if (request_parse_renew(f->payload, f->len, &r, &err) < 0)
		stream_fail(s, &err);
	else
		renewal_begin(s, &r);
	request_renew_free(&r);
}

static void request_begin_thaw(struct stream *s, const struct frame *f)
{
	struct request_thaw r;
	struct err err;

	if (request_parse_thaw(f->payload, f->len, &r, &err) < 0)
		stream_fail(s, &err);
	else
		freeze_thaw(s, &r);
	request_thaw_free(&r);
}

static void request_begin_egress(struct stream *s, const struct frame *f)
{
	struct request_egress r;
	struct err err;

	if (request_parse_egress(f->payload, f->len, &r, &err) < 0) {
		stream_fail(s, &err);
		return;
	}
	egress_request(s, &r);
	request_egress_free(&r);
}

/* While everything is frozen: only what a frozen machine can answer. */
static bool request_refuse_frozen(struct stream *s, const struct frame *f)
{
	if (freeze_allows(s->agent, f->type))
		return false;
	s->body = f->type == FRAME_EXEC || f->type == FRAME_PUT;
	stream_error(s, EBUSY, "the sandbox is frozen");
	return true;
}

void request_begin(struct stream *s, const struct frame *f)
{
	struct err err;

	switch (f->type) {
	case FRAME_EXEC:
		if (!request_refuse_frozen(s, f))
			request_begin_exec(s, f);
		break;
	case FRAME_PUT:
	case FRAME_GET:
		if (!request_refuse_frozen(s, f))
			request_begin_file(s, f);
		break;
	case FRAME_RENEW:
		request_begin_renew(s, f);
		break;
	case FRAME_WARM:
		if (!request_refuse_frozen(s, f))
			repl_warm(&s->agent->repl, s);
		break;
	case FRAME_FREEZE:
		if (!request_refuse_frozen(s, f))
			freeze_begin(s);
		break;
	case FRAME_FILE:
		if (!request_refuse_frozen(s, f))
			request_begin_fileop(s, f);
		break;
	case FRAME_CONTEXT:
		if (!request_refuse_frozen(s, f))
			request_begin_context(s, f);
		break;
	case FRAME_COMMAND:
		if (!request_refuse_frozen(s, f))
			request_begin_command(s, f);
		break;
	case FRAME_EGRESS:
		if (!request_refuse_frozen(s, f))
			request_begin_egress(s, f);
		break;
	case FRAME_CHANGES:
		request_begin_changes(s, f);
		break;
	case FRAME_HASHES:
		s->body = true;
		hashes_begin(s);
		break;
	case FRAME_THAW:
		request_begin_thaw(s, f);
		break;
	case FRAME_STATUS:
		stream_final(s, FRAME_OK, status_object(s->agent));
		break;
	default:
		err_text(&err, EPROTO, "unknown frame type 0x%02x", f->type);
		stream_refuse(s, &err);
		break;
	}
}
