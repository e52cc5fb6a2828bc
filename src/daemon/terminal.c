/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/sandboxes/:id/commands/:command_id/terminal: a kept command over a
 * WebSocket (RFC 6455). Binary messages are bytes, both ways; a text from the
 * client is {"resize": {"cols", "rows"}}; the last message is the text
 * {"exit": <exit event>}, and then a close with 1000.
 *
 * First the conversation with the agent begins, so that what it refuses is an
 * HTTP error; then the connection is upgraded, and the socket is read and
 * written here. A command that takes no input is shown all the same.
 *
 * Invariants of back-pressure: a frame is taken from the agent when out has
 * room for a whole one, the socket is read when its bytes can go on to the agent
 * and out has room for an answer. So one terminal holds at most one message in,
 * and TERMINAL_OUT bytes out, whatever the client does.
 */
#define _GNU_SOURCE
#include "daemon/api.h"
#include "daemon/command.h"
#include "daemon/exec_events.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "lib/websocket.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

/* Room that output leaves for the exit event, answers and the close. */
#define SPARE 8192u
/* One frame of output, and what was there before it. */
#define TERMINAL_OUT (2 * FRAME_PAYLOAD_MAX + SPARE)
#define CHUNK        16384u

struct terminal {
	struct attach a; /* first */
	struct request *r;
	int64_t offset[2];
	bool input;                /* stdin is ours; else what comes is dropped */
	bool open, closing, dirty; /* upgraded; a close frame was sent; the client is to be cut */
	bool drain; /* it broke the protocol: read and dropped, or a reset would overtake the close
		     */
	uint64_t begin_ns;
	struct loop_timer timer; /* another try; when closing, the end of patience */
	struct loop_src src;
	struct websocket_parser in;
	struct buf out;
	uint8_t raw[CHUNK]; /* read, and not parsed yet: raw_len bytes from raw_at on */
	size_t raw_at, raw_len;
	const uint8_t *data; /* of a message, inside the parser: data_len bytes not sent yet */
	size_t data_len;
	char size[COMMAND_SIZE_MAX]; /* of RESIZE, that waits for room; "" for none */
};

static void terminal_run(struct terminal *t);

static struct terminal *terminal_of(struct attach *a)
{
	return (struct terminal *)a;
}

/* --- the end ----------------------------------------------------------------------------- */

/* Nothing more goes over the socket. */
static void terminal_hang_up(struct terminal *t)
{
	attach_close(&t->a);
	loop_del(&t->src);
	http_upgrade_close(t->r);
	loop_timer_cancel(&t->timer);
	t->open = false;
}

/* Says so; then what waits is sent, and the client's answer awaited for a while. */
static void terminal_close(struct terminal *t, uint16_t code, const char *reason)
{
	attach_close(&t->a);
	if (t->closing)
		return;
	t->closing = true;
	if (websocket_append_close(&t->out, code, reason, NULL) < 0)
		t->dirty = true;
	loop_timer_set(t->r->http->loop, &t->timer, TERMINAL_CLOSE_NS);
}

/* The last message, and the close. */
static void terminal_exit(struct terminal *t, const struct exec_exit *x)
{
	static const char head[] = "{\"exit\":";
	struct ndjson line;
	struct buf text;

	ndjson_init(&line, true);
	buf_init(&text, SPARE / 2);
	/* A line ends in a newline. */
	if (exec_events_exit(&line, x, (int64_t)(io_realtime_ns() / 1000000)) < 0 ||
	    buf_append(&text, head, sizeof(head) - 1) < 0 ||
	    buf_append(&text, buf_data(&line.out), buf_len(&line.out) - 1) < 0 ||
	    buf_append(&text, "}", 1) < 0 ||
	    websocket_append(&t->out, WEBSOCKET_TEXT, buf_data(&text), buf_len(&text), NULL) < 0)
		terminal_close(t, WEBSOCKET_INTERNAL, NULL);
	else
		terminal_close(t, WEBSOCKET_NORMAL, NULL);
	ndjson_free(&line);
	buf_free(&text);
}

static void terminal_failed(struct terminal *t, const char *reason, const char *state)
{
	struct exec_exit x = {.code = -1, .reason = reason, .state = state};

	terminal_exit(t, &x);
}

static void terminal_lost(struct attach *a, int error)
{
	struct terminal *t = terminal_of(a);

	if (!t->open) {
		command_reply_lost(t->r, error);
		return;
	}
	terminal_failed(t, "agent_error", NULL);
	terminal_run(t);
}

static void terminal_ended(struct attach *a, const char *reason)
{
	struct terminal *t = terminal_of(a);
	bool closed = a->sb->closed;

	if (t->open)
		terminal_run(t); /* what the command wrote before */
	if (!a->s)
		return;
	attach_close(a);
	if (!t->open) {
		reply_ended(t->r, reason);
		return;
	}
	terminal_failed(t, closed ? "closed" : "vm_ended", "lost");
	terminal_run(t);
}

/* --- from the agent ---------------------------------------------------------------------- */

static int terminal_open(struct terminal *t, struct sandbox *sb, struct err *err);

/* A further try, with or without its input. */
static void terminal_again(struct terminal *t)
{
	struct sandbox *sb = api_find_sandbox(t->r);
	struct err err = {0};

	if (sb && terminal_open(t, sb, &err) < 0)
		reply_no_stream(t->r, &err);
}

static void terminal_refused(struct terminal *t, const struct frame *f)
{
	struct agent_failure why;

	agent_failure_parse(f, &why);
	attach_close(&t->a);
	if (t->input && (agent_failure_is(&why, "ended") || agent_failure_is(&why, "closed") ||
			 agent_failure_is(&why, "bad_request"))) {
		t->input = false;
		terminal_again(t);
	} else if (agent_failure_is(&why, "busy") && io_now_ns() - t->begin_ns < WRITER_LEAVES_NS) {
		loop_timer_set(t->r->http->loop, &t->timer, WRITER_RETRY_NS);
	} else {
		command_refused(&why);
		reply_error(t->r, why.status, why.code, why.message, NULL, NULL);
	}
}

/* One frame of an open terminal: 0 or -errno. */
static int terminal_frame(struct terminal *t, const struct frame *f)
{
	struct exec_exit x = {0};
	bool cancelled;
	int rc;

	switch (f->type) {
	case FRAME_STDOUT:
	case FRAME_STDERR:
		return websocket_append(&t->out, WEBSOCKET_BINARY, f->payload, f->len, NULL);
	case FRAME_EVENT:
		return 0; /* a position, or a word beside the output: the screen has no place */
	case FRAME_EXIT:
		rc = exec_exit_parse(f, &x, &cancelled);
		if (cancelled)
			x.reason = "interrupted";
		if (rc == 0)
			terminal_exit(t, &x);
		json_decref(x.log);
		return rc;
	default:
		return -EPROTO;
	}
}

static void terminal_output(struct terminal *t)
{
	struct frame f;

	while (t->a.s && !t->closing && buf_room(&t->out) >= FRAME_PAYLOAD_MAX + SPARE) {
		if (attach_next(&t->a, &f) == 0)
			return;
		if (terminal_frame(t, &f) < 0 && !t->closing) {
			attach_close(&t->a);
			terminal_failed(t, "agent_error", NULL);
		}
	}
}

/* --- from the client --------------------------------------------------------------------- */

/* {"resize": {"cols", "rows"}}. */
static bool terminal_text(struct terminal *t, const struct websocket_message *m)
{
	json_t *o = json_safe_load_few((const char *)m->data, m->len, LIMIT_RESIZE_VALUES,
				       JSON_REJECT_DUPLICATES);
	const json_t *size = json_object_get(o, "resize");
	json_int_t cols = json_integer_value(json_object_get(size, "cols"));
	json_int_t rows = json_integer_value(json_object_get(size, "rows"));
	bool ok = cols >= 1 && cols <= LIMIT_TERMINAL && rows >= 1 && rows <= LIMIT_TERMINAL;

	if (ok)
		command_size_text(t->size, cols, rows);
	json_decref(o);
	return ok;
}

static void terminal_message(struct terminal *t, const struct websocket_message *m)
{
	switch (m->type) {
	case WEBSOCKET_BINARY:
		t->data = m->data;
		t->data_len = m->len;
		return;
	case WEBSOCKET_TEXT:
		if (!terminal_text(t, m))
			terminal_close(t, WEBSOCKET_POLICY, "not a resize");
		return;
	case WEBSOCKET_PING:
		if (websocket_append(&t->out, WEBSOCKET_PONG, m->data, m->len, NULL) < 0)
			t->dirty = true;
		return;
	case WEBSOCKET_CLOSE:
		terminal_close(t, m->code, NULL);
		t->dirty = true; /* both have said so: the rest is sent, if it fits */
		return;
	default:
		return;
	}
}

/* What was read before goes on. False: it waits for the agent, or for the client to read. */
static bool terminal_forward(struct terminal *t)
{
	size_t n;

	if (t->closing || !t->a.s || !t->input)
		t->data_len = 0;
	if (t->size[0] && t->a.s) {
		if (agent_room(t->a.s) == 0)
			return false;
		agent_send(t->a.s, FRAME_RESIZE, t->size, strlen(t->size));
		t->size[0] = '\0';
	}
	while (t->data_len) {
		n = attach_room(&t->a);
		if (n == 0)
			return false;
		if (n > t->data_len)
			n = t->data_len;
		attach_send(&t->a, t->data, n);
		t->data += n;
		t->data_len -= n;
	}
	return buf_room(&t->out) >= SPARE / 2;
}

static void terminal_parse(struct terminal *t)
{
	if (t->drain)
		t->raw_len = 0;
	while (t->raw_len && !t->dirty && terminal_forward(t)) {
		struct websocket_message m;
		ssize_t n = websocket_parse(&t->in, t->raw + t->raw_at, t->raw_len, &m);

		if (n < 0) {
			terminal_close(t, websocket_error_code((int)n), NULL);
			t->drain = true;
			t->raw_len = 0;
			return;
		}
		t->raw_at += (size_t)n;
		t->raw_len -= (size_t)n;
		if (m.type)
			terminal_message(t, &m);
	}
}

/* Reads until the socket has no more, or what came must wait. */
static void terminal_input(struct terminal *t)
{
	/* A bounded batch: others have their turn. */
	for (int i = 0; i < 16 && !t->dirty; i++) {
		ssize_t n;

		terminal_parse(t);
		if (t->raw_len || t->dirty || !terminal_forward(t))
			return;
		n = recv(t->src.fd, t->raw, sizeof(t->raw), MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			t->closing = t->dirty = true;
			buf_free(&t->out);
			return;
		}
		t->raw_at = 0;
		t->raw_len = (size_t)n;
	}
}

/* --- both -------------------------------------------------------------------------------- */

/* All that can go on does. The socket may be gone behind it. */
static void terminal_run(struct terminal *t)
{
	int rc;

	terminal_input(t);
	terminal_output(t);
	rc = buf_flush(&t->out, t->src.fd);
	if (rc < 0 || (t->dirty && t->closing)) {
		terminal_hang_up(t);
		return;
	}
	if (rc == 0 && t->drain)
		shutdown(t->src.fd, SHUT_WR);
	/* The room is new: more may go on. */
	if (rc == 0 && t->a.s)
		terminal_output(t);
	loop_mod(&t->src,
		 (t->raw_len || t->data_len ? 0 : EPOLLIN) | (buf_len(&t->out) ? EPOLLOUT : 0));
}

static void terminal_on_socket(struct loop_src *src, uint32_t events)
{
	struct terminal *t = src->arg;

	/* A reset, or both directions are shut: nobody is there. */
	if (events & (EPOLLERR | EPOLLHUP))
		terminal_hang_up(t);
	else
		terminal_run(t);
}

static void terminal_reply(struct terminal *t)
{
	char accept[WEBSOCKET_ACCEPT_LEN + 1];
	const char *const headers[] = {"Upgrade", "websocket", "Sec-WebSocket-Accept", accept,
				       NULL};

	/* The key was checked at the beginning. */
	if (websocket_accept(accept, http_header(t->r, "Sec-WebSocket-Key")) == 0)
		http_reply_upgrade(t->r, headers);
}

static void terminal_event(struct attach *a)
{
	struct terminal *t = terminal_of(a);
	struct frame f;

	if (t->open) {
		terminal_run(t);
		return;
	}
	/* Only the position is taken before there is a client to write to. */
	if (a->attached)
		return;
	if (attach_first(a, &f) > 0 && f.type == FRAME_ERROR)
		terminal_refused(t, &f);
	else if (a->s && a->attached)
		terminal_reply(t);
}

static void terminal_upgraded(struct request *r, int fd, const void *extra, size_t len)
{
	struct terminal *t = r->state;

	t->open = true;
	if (len > sizeof(t->raw) || loop_add(r->http->loop, &t->src, fd, EPOLLIN) < 0) {
		terminal_hang_up(t);
		return;
	}
	if (len)
		memcpy(t->raw, extra, len);
	t->raw_len = len;
	if (!t->a.s) /* the sandbox has ended, or the agent broke off, while this was on its way */
		terminal_failed(t, "agent_error", NULL);
	terminal_run(t);
}

static void terminal_on_timer(struct loop_timer *timer)
{
	struct terminal *t = timer->arg;

	if (t->open)
		terminal_hang_up(t); /* the client does not take the close */
	else
		terminal_again(t);
}

static void terminal_end(struct request *r)
{
	struct terminal *t = r->state;

	loop_timer_cancel(&t->timer);
	loop_del(&t->src);
	attach_close(&t->a);
	websocket_parser_free(&t->in);
	buf_free(&t->out);
	/* A callback may be up the stack. */
	loop_defer_free(r->http->loop, t);
}

static const struct attach_ops terminal_attach_ops = {terminal_event, terminal_lost,
						      terminal_ended};
static const struct request_ops terminal_ops = {.upgraded = terminal_upgraded, .end = terminal_end};

static int terminal_open(struct terminal *t, struct sandbox *sb, struct err *err)
{
	t->a = (struct attach){0};
	return attach_open(&t->a, sb, t->r->match.other, t->offset, t->input, &terminal_attach_ops,
			   err);
}

/* The client's half of the handshake (section 4.2.1). False: answered. */
static bool terminal_handshake(struct request *r)
{
	static const char *const upgrade[] = {"Upgrade", "websocket", "Sec-WebSocket-Version",
					      WEBSOCKET_VERSION, NULL};
	const char *key = http_header(r, "Sec-WebSocket-Key");
	const char *version = http_header(r, "Sec-WebSocket-Version");
	const char *to = http_header(r, "Upgrade"), *how = http_header(r, "Connection");
	char accept[WEBSOCKET_ACCEPT_LEN + 1];

	if (strcmp(r->method, "GET") != 0 || !to || !websocket_has_token(to, "websocket") || !how ||
	    !websocket_has_token(how, "Upgrade") || !version ||
	    strcmp(version, WEBSOCKET_VERSION) != 0) {
		reply_error_with(r, 426, "upgrade_required", "this endpoint speaks WebSocket, 13",
				 NULL, NULL, upgrade);
		return false;
	}
	if (key && websocket_accept(accept, key) == 0)
		return true;
	reply_invalid(r, "Sec-WebSocket-Key", "Sec-WebSocket-Key is not the base64 of 16 bytes");
	return false;
}

void api_command_terminal(struct request *r)
{
	struct sandbox *sb = command_sandbox(r);
	int64_t offset[2];
	struct terminal *t;
	struct err err = {0};

	if (!sb || !terminal_handshake(r) || !attach_offsets(r, offset))
		return;
	t = calloc(1, sizeof(*t));
	if (!t) {
		reply_json(r, 500, NULL);
		return;
	}
	t->r = r;
	t->input = true;
	memcpy(t->offset, offset, sizeof(offset));
	t->begin_ns = io_now_ns();
	t->timer = (struct loop_timer){.fn = terminal_on_timer, .arg = t};
	t->src = (struct loop_src){.fd = -1, .fn = terminal_on_socket, .arg = t};
	websocket_parser_init(&t->in, WEBSOCKET_SERVER, LIMIT_MESSAGE);
	buf_init(&t->out, TERMINAL_OUT);
	if (terminal_open(t, sb, &err) < 0) {
		free(t);
		reply_no_stream(r, &err);
		return;
	}
	r->ops = &terminal_ops;
	r->state = t;
}
