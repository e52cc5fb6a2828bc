/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session without a terminal: our stdin is the body of one request, as
 * chunks of the size they are read in, and the answer to another is a stream of
 * events whose output goes to stdout and stderr, byte for byte. Each side goes
 * at the pace of its reader: stdin is read when nothing of it waits, events
 * when all that was read has been written. One poll() waits for everything.
 */
#include "cli/http_call.h"
#include "cli/shell.h"
#include "cli/terminal.h"
#include "lib/base64.h"
#include "lib/io.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define READ_MAX       16384u
#define LINE_MAX_BYTES (1024u * 1024u) /* an event */
/* What one read can add to the output: the line that it ends, and whole ones. */
#define SHOW_MAX (LINE_MAX_BYTES + READ_MAX)
/* Silence after which a shell whose stdin was lost does not end by itself. */
#define LOST_MS 5000
#define OUT_MAX 65536u

struct side {
	int fd; /* 1 or 2, or what was opened for it */
	struct buf show;
};

struct pipe_session {
	const struct shell *shell;
	struct shell_end *end;
	int in;     /* the request with our stdin; -1 when it is over */
	int events; /* the stream */
	struct buf out;
	struct http_reply in_reply, stream;
	struct side sides[2]; /* stdout, stderr */
	bool ended;           /* all of stdin is in out, or it is of no use */
	bool lost;            /* the shell misses what was not sent */
	bool over, bad_input, bad_output;
};

/* --- stdin --- */

/* No more of stdin is sent. */
static void stop_input(struct pipe_session *s, bool lost)
{
	close_fd(&s->in);
	s->ended = true;
	s->lost = lost;
	buf_consume(&s->out, buf_len(&s->out));
}

static int on_stdin(struct pipe_session *s)
{
	uint8_t data[READ_MAX];
	char size[24];
	ssize_t n = io_read_some(STDIN_FILENO, data, sizeof(data));
	int rc;

	if (n == -EAGAIN)
		return 0;
	s->bad_input = n < 0;
	if (n < 0)
		return (int)n;
	s->ended = n == 0;
	snprintf(size, sizeof(size), "%zx\r\n", (size_t)n);
	rc = buf_append(&s->out, size, strlen(size));
	if (rc == 0)
		rc = buf_append(&s->out, data, (size_t)n);
	return rc == 0 ? buf_append(&s->out, "\r\n", 2) : rc;
}

/* Whether the daemon took all of it, or the shell does not want it. */
static bool input_went_well(const struct http_reply *r)
{
	const struct buf *b = &r->body;
	json_t *o = json_loadb((const char *)buf_data(b), buf_len(b), 0, NULL);
	const char *code = json_string_value(json_object_get(o, "code"));
	bool well = r->status / 100 == 2;

	if (code && r->status == 409)
		well = strcmp(code, "command_ended") == 0 || strcmp(code, "stdin_closed") == 0;
	json_decref(o);
	return well;
}

/* The request with stdin: something is answered, or the connection is gone. */
static void on_in_reply(struct pipe_session *s)
{
	uint8_t data[1024];
	ssize_t n = io_read_some(s->in, data, sizeof(data));

	if (n == -EAGAIN)
		return;
	if (n <= 0 || http_reply_feed(&s->in_reply, data, (size_t)n) < 0)
		stop_input(s, true);
	else if (http_reply_done(&s->in_reply))
		stop_input(s, !input_went_well(&s->in_reply));
}

static int open_input(struct pipe_session *s, struct err *err)
{
	char path[SHELL_PATH_MAX];
	struct http_call call = {.to = &s->shell->to, .method = "POST", .path = path};
	int rc = endpoint_connect(call.to, s->shell->stop_fd, &s->in, err);

	if (rc < 0)
		return rc;
	shell_path(path, s->shell, "/stdin?close=1");
	rc = http_append_head(&s->out, &call, true);
	if (rc == 0)
		rc = buf_append(&s->out, "\r\n", 2);
	return rc < 0 ? err_set(err, -rc, "the request") : 0;
}

/* --- events --- */

static int show(struct side *side, const json_t *event)
{
	const json_t *data = json_object_get(event, "data");
	const char *text = json_string_value(data), *encoding;
	size_t len = json_string_length(data);
	uint8_t *to;
	ssize_t n;

	if (!text)
		return -EPROTO;
	encoding = json_string_value(json_object_get(event, "encoding"));
	if (!encoding)
		return buf_append(&side->show, text, len);
	if (strcmp(encoding, "base64") != 0)
		return -EPROTO;
	to = buf_reserve(&side->show, len);
	if (!to)
		return -ENOBUFS;
	n = base64_decode(to, text, len);
	if (n < 0)
		return -EPROTO;
	buf_commit(&side->show, (size_t)n);
	return 0;
}

static int on_event(struct pipe_session *s, const uint8_t *line, size_t len)
{
	json_t *event = json_loadb((const char *)line, len, JSON_ALLOW_NUL, NULL);
	const char *type = json_string_value(json_object_get(event, "type"));
	int rc = 0;

	if (!type)
		rc = -EPROTO;
	else if (strcmp(type, "stdout") == 0)
		rc = show(&s->sides[0], event);
	else if (strcmp(type, "stderr") == 0)
		rc = show(&s->sides[1], event);
	else if (strcmp(type, "exit") == 0) {
		rc = shell_take_exit(s->end, event);
		s->over = true;
	}
	json_decref(event);
	return rc;
}

static int take_lines(struct pipe_session *s)
{
	int rc = 0;

	while (rc == 0 && !s->over && buf_len(&s->stream.body)) {
		const uint8_t *p = buf_data(&s->stream.body);
		const uint8_t *end = memchr(p, '\n', buf_len(&s->stream.body));

		if (!end)
			break;
		rc = on_event(s, p, (size_t)(end - p));
		buf_consume(&s->stream.body, (size_t)(end - p) + 1);
	}
	return rc;
}

static int on_events(struct pipe_session *s)
{
	uint8_t data[READ_MAX];
	size_t room = buf_room(&s->stream.body);
	ssize_t n, took;

	if (room == 0)
		return -EMSGSIZE;
	n = io_read_some(s->events, data, room < sizeof(data) ? room : sizeof(data));
	if (n == -EAGAIN)
		return 0;
	if (n == 0)
		return -ECONNRESET;
	if (n < 0)
		return (int)n;
	took = http_reply_feed(&s->stream, data, (size_t)n);
	if (took < 0)
		return (int)took;
	n = take_lines(s);
	return n == 0 && !s->over && http_reply_done(&s->stream) ? -ECONNRESET : (int)n;
}

/* --- output --- */

static int write_side(struct pipe_session *s, struct side *side)
{
	size_t len = buf_len(&side->show);
	/* No more than a pipe takes at once: the descriptor may be a blocking one. */
	ssize_t n = io_write_some(side->fd, buf_data(&side->show), len < 4096 ? len : 4096);

	if (n == -EAGAIN)
		return 0;
	s->bad_output = n < 0;
	if (n < 0)
		return (int)n;
	buf_consume(&side->show, (size_t)n);
	return 0;
}

static bool to_show(const struct pipe_session *s)
{
	return buf_len(&s->sides[0].show) || buf_len(&s->sides[1].show);
}

static int turn(struct pipe_session *s)
{
	bool busy = to_show(s);
	struct pollfd p[] = {
		{.fd = s->shell->stop_fd, .events = POLLIN},
		{.fd = s->ended || buf_len(&s->out) ? -1 : STDIN_FILENO, .events = POLLIN},
		{.fd = s->in, .events = (short)(POLLIN | (buf_len(&s->out) ? POLLOUT : 0))},
		{.fd = busy ? -1 : s->events, .events = POLLIN},
		{.fd = buf_len(&s->sides[0].show) ? s->sides[0].fd : -1, .events = POLLOUT},
		{.fd = buf_len(&s->sides[1].show) ? s->sides[1].fd : -1, .events = POLLOUT},
	};
	int rc = 0, n = poll(p, ARRAY_SIZE(p), s->lost && !busy ? LOST_MS : -1);

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	if (n == 0) /* it waits for what will not come */
		return -EPIPE;
	if (p[0].revents) {
		shell_take_signal(s->end, s->shell->stop_fd);
		s->over = true;
		return 0;
	}
	if (p[1].revents)
		rc = on_stdin(s);
	if (p[2].revents & ~POLLOUT) /* first: an answer says why no more is taken */
		on_in_reply(s);
	if (p[2].revents & POLLOUT && s->in >= 0 && buf_flush(&s->out, s->in) < 0)
		stop_input(s, true);
	if (rc == 0 && p[3].revents)
		rc = on_events(s);
	for (int i = 0; i < 2 && rc == 0; i++)
		if (p[4 + i].revents)
			rc = write_side(s, &s->sides[i]);
	return rc;
}

/* What was read before the end came is written, unless a signal ended us. */
static int drain(struct pipe_session *s)
{
	int rc = 0;

	for (int i = 0; i < 2 && s->end->how != SHELL_SIGNAL; i++) {
		while (rc == 0 && buf_len(&s->sides[i].show)) {
			rc = endpoint_wait(s->sides[i].fd, POLLOUT, s->shell->stop_fd, 0);
			rc = rc > 0 ? write_side(s, &s->sides[i]) : rc;
		}
	}
	return rc;
}

static int run(struct pipe_session *s, struct err *err)
{
	int rc = take_lines(s);

	while (rc == 0 && !s->over)
		rc = turn(s);
	if (rc == 0)
		rc = drain(s);
	if (rc == 0 || rc == -ECANCELED)
		return rc;
	if (s->lost && rc == -EPIPE && !s->bad_output)
		return err_text(err, EPIPE, "the daemon did not take all of stdin (status %d)",
				s->in_reply.status);
	if (s->bad_input)
		return err_set(err, -rc, "cannot read stdin");
	if (s->bad_output)
		return err_set(err, -rc, "cannot write what the shell says");
	return err_set(err, -rc, "the connection to the shell broke");
}

int shell_pipe(const struct shell *shell, struct shell_end *end, struct err *err)
{
	struct pipe_session s = {.shell = shell, .end = end, .in = -1, .events = -1};
	char path[SHELL_PATH_MAX];
	struct http_call stream = {.to = &shell->to,
				   .method = "GET",
				   .path = path,
				   .timeout_s = 60,
				   .stop_fd = shell->stop_fd};
	int rc = 0;

	buf_init(&s.out, OUT_MAX);
	http_reply_init(&s.in_reply, READ_MAX);
	http_reply_init(&s.stream, LINE_MAX_BYTES);
	for (int i = 0; i < 2; i++) {
		buf_init(&s.sides[i].show, SHOW_MAX);
		s.sides[i].fd = terminal_open_output(STDOUT_FILENO + i);
		if (s.sides[i].fd < 0)
			rc = err_set(err, -s.sides[i].fd, "cannot write to stdout and stderr");
	}
	shell_path(path, shell, "/stream?stdout=0&stderr=0");
	if (rc == 0)
		rc = http_open(&stream, 200, &s.events, &s.stream, NULL, err);
	if (rc == 0)
		rc = open_input(&s, err);
	if (rc == 0)
		rc = run(&s, err);
	for (int i = 0; i < 2; i++) {
		buf_free(&s.sides[i].show);
		close_fd(&s.sides[i].fd);
	}
	http_reply_free(&s.in_reply);
	http_reply_free(&s.stream);
	buf_free(&s.out);
	close_fd(&s.in);
	close_fd(&s.events);
	return rc;
}
