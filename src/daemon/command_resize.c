/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POST /v1/sandboxes/:id/commands/:command_id/resize: a conversation that sets
 * the size of the command's terminal and leaves. RESIZE has no answer; that to a
 * PING behind it says that it was heeded, an ERROR that there is no terminal.
 */
#include "daemon/api.h"
#include "daemon/command.h"
#include "daemon/fields.h"
#include "daemon/reply.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct command_resize {
	struct attach a; /* first */
	struct request *r;
	bool sent;
	char size[COMMAND_SIZE_MAX]; /* of RESIZE */
};

static struct command_resize *resize_of(struct attach *a)
{
	return (struct command_resize *)a;
}

static void resize_lost(struct attach *a, int error)
{
	command_reply_lost(resize_of(a)->r, error);
}

static void resize_ended(struct attach *a, const char *reason)
{
	attach_close(a);
	reply_ended(resize_of(a)->r, reason);
}

static void resize_frame(struct command_resize *cr, const struct frame *f)
{
	struct attach *a = &cr->a;

	switch (f->type) {
	case FRAME_ERROR:
		if (cr->sent)
			reply_error(cr->r, 400, "invalid_request", "the command has no terminal",
				    NULL, NULL);
		else
			command_reply_refused(cr->r, f);
		attach_close(a); /* the frame is inside of it */
		return;
	case FRAME_EXIT:
		attach_close(a);
		reply_error(cr->r, 409, "command_ended", "the command has ended", NULL, NULL);
		return;
	case FRAME_PONG:
		attach_close(a);
		if (cr->sent)
			reply_empty(cr->r);
		else
			resize_lost(a, -EPROTO);
		return;
	default:
		return; /* output */
	}
}

static void resize_event(struct attach *a)
{
	struct command_resize *cr = resize_of(a);
	struct frame f;

	while (attach_next(a, &f) > 0)
		resize_frame(cr, &f);
	if (!a->s || !a->attached || cr->sent)
		return;
	agent_send(a->s, FRAME_RESIZE, cr->size, strlen(cr->size));
	agent_send(a->s, FRAME_PING, "podflare", 8);
	cr->sent = true;
}

static void resize_end(struct request *r)
{
	struct command_resize *cr = r->state;

	attach_close(&cr->a);
	/* A callback of the stream may be up the stack. */
	loop_defer_free(r->http->loop, cr);
}

static const struct attach_ops resize_attach_ops = {resize_event, resize_lost, resize_ended};
static const struct request_ops resize_ops = {.end = resize_end};

static void resize_begin(struct request *r, struct sandbox *sb, json_int_t cols, json_int_t rows)
{
	static const int64_t only_new[2] = {-1, -1};
	struct command_resize *cr = calloc(1, sizeof(*cr));
	struct err err = {0};

	if (!cr) {
		reply_json(r, 500, NULL);
		return;
	}
	cr->r = r;
	command_size_text(cr->size, cols, rows);
	if (attach_open(&cr->a, sb, r->match.other, only_new, false, &resize_attach_ops, &err) <
	    0) {
		free(cr);
		reply_no_stream(r, &err);
		return;
	}
	r->ops = &resize_ops;
	r->state = cr;
}

void api_command_resize(struct request *r)
{
	struct sandbox *sb = command_sandbox(r);
	json_t *body = sb ? fields_parse(r, false) : NULL;
	json_int_t cols, rows;

	if (body && fields_size_is(r, body, &cols, &rows))
		resize_begin(r, sb, cols, rows);
	json_decref(body);
}
