/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session on a terminal: bytes both ways over one WebSocket, the size of
 * the window as it changes. What waits for a slow side is bounded: keys are
 * read only while little waits for the daemon, and the daemon is read only
 * when all that it sent is on the screen. One poll() waits for everything,
 * signals included; the terminal is raw inside shell_terminal() only.
 */
#include "cli/http_call.h"
#include "cli/shell.h"
#include "cli/terminal.h"
#include "lib/io.h"
#include "lib/websocket.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define MESSAGE_MAX 65536u
#define READ_MAX    4096u
#define OUT_HIGH    65536u /* no more keys are read above this */
#define OUT_MAX     (2 * OUT_HIGH)
/* All messages that one read can complete. */
#define SHOW_MAX (MESSAGE_MAX + 4 * READ_MAX)

struct session {
	const struct shell *shell;
	struct shell_end *end;
	int sock, change_fd, screen;
	struct websocket_parser in;
	struct buf out, show;
	struct terminal terminal;
	struct terminal_size size; /* that the shell has been told */
	struct terminal_escape escape;
	bool over, bad_screen;
};

/* --- to the daemon --- */

static int send_message(struct session *s, enum websocket_type type, const void *data, size_t len)
{
	uint8_t mask[WEBSOCKET_MASK_LEN];

	if (getrandom(mask, sizeof(mask), 0) != sizeof(mask))
		return -EIO;
	return websocket_append(&s->out, type, data, len, mask);
}

static int send_close(struct session *s, uint16_t code)
{
	uint8_t mask[WEBSOCKET_MASK_LEN];

	if (getrandom(mask, sizeof(mask), 0) != sizeof(mask))
		return -EIO;
	return websocket_append_close(&s->out, code, NULL, mask);
}

static int send_size(struct session *s)
{
	struct terminal_size now = terminal_get_size(STDIN_FILENO);
	char text[80];
	int n;

	if (now.cols == s->size.cols && now.rows == s->size.rows)
		return 0;
	s->size = now;
	n = snprintf(text, sizeof(text), "{\"resize\":{\"cols\":%u,\"rows\":%u}}", now.cols,
		     now.rows);
	return send_message(s, WEBSOCKET_TEXT, text, (size_t)n);
}

static void finish(struct session *s, int how)
{
	s->end->how = how;
	s->over = true;
}

static int on_keys(struct session *s)
{
	uint8_t in[READ_MAX], out[READ_MAX + 1];
	ssize_t n = io_read_some(STDIN_FILENO, in, sizeof(in));
	bool leave;
	size_t len;

	if (n == -EAGAIN)
		return 0;
	if (n <= 0) { /* the terminal is gone */
		s->end->code = SIGHUP;
		finish(s, SHELL_SIGNAL);
		return 0;
	}
	len = terminal_escape_scan(&s->escape, out, in, (size_t)n, &leave);
	if (leave)
		finish(s, SHELL_LEFT);
	return len ? send_message(s, WEBSOCKET_BINARY, out, len) : 0;
}

/* --- from the daemon --- */

static int on_text(struct session *s, const struct websocket_message *m)
{
	json_t *o = json_loadb((const char *)m->data, m->len, 0, NULL);
	const json_t *event = json_object_get(o, "exit");
	int rc = event ? shell_take_exit(s->end, event) : 0;

	json_decref(o);
	return rc;
}

static int on_message(struct session *s, const struct websocket_message *m)
{
	switch (m->type) {
	case WEBSOCKET_BINARY:
		return buf_append(&s->show, m->data, m->len);
	case WEBSOCKET_TEXT:
		return on_text(s, m);
	case WEBSOCKET_PING:
		return send_message(s, WEBSOCKET_PONG, m->data, m->len);
	case WEBSOCKET_CLOSE:
		s->over = true;
		return send_close(s, m->code);
	case WEBSOCKET_PONG:
	case WEBSOCKET_NONE:
		break;
	}
	return 0;
}

static int take(struct session *s, const uint8_t *data, size_t len)
{
	while (len && !s->over) {
		struct websocket_message m;
		ssize_t n = websocket_parse(&s->in, data, len, &m);
		int rc = n < 0 ? (int)n : on_message(s, &m);

		if (n < 0)
			(void)!send_close(s, websocket_error_code((int)n));
		if (rc < 0)
			return rc;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static int on_socket(struct session *s)
{
	uint8_t data[READ_MAX];
	ssize_t n = io_read_some(s->sock, data, sizeof(data));

	if (n == -EAGAIN)
		return 0;
	if (n == 0) { /* without a close: good enough when the exit has come */
		s->over = true;
		return s->end->how == SHELL_LOST ? -ECONNRESET : 0;
	}
	return n < 0 ? (int)n : take(s, data, (size_t)n);
}

/* --- the screen and the process --- */

static int write_screen(struct session *s)
{
	size_t len = buf_len(&s->show);
	/* No more than a pipe takes at once: the descriptor may be a blocking one. */
	ssize_t n = io_write_some(s->screen, buf_data(&s->show), len < READ_MAX ? len : READ_MAX);

	if (n == -EAGAIN)
		return 0;
	s->bad_screen = n < 0;
	if (n < 0)
		return (int)n;
	buf_consume(&s->show, (size_t)n);
	return 0;
}

static int on_change(struct session *s)
{
	struct signalfd_siginfo info;

	if (io_read_some(s->change_fd, &info, sizeof(info)) != sizeof(info))
		return 0;
	if (info.ssi_signo == SIGTSTP) {
		terminal_restore(&s->terminal);
		kill(getpid(), SIGSTOP);
	} else if (info.ssi_signo == SIGCONT && !s->terminal.raw) {
		int rc = terminal_raw(&s->terminal, STDIN_FILENO);

		if (rc < 0)
			return rc;
	} else if (info.ssi_signo == SIGCONT) {
		terminal_again(&s->terminal);
	}
	return send_size(s);
}

static int turn(struct session *s)
{
	struct pollfd p[] = {
		{.fd = s->shell->stop_fd, .events = POLLIN},
		{.fd = s->change_fd, .events = POLLIN},
		{.fd = buf_len(&s->out) < OUT_HIGH ? STDIN_FILENO : -1, .events = POLLIN},
		{.fd = buf_len(&s->show) ? s->screen : -1, .events = POLLOUT},
		{.fd = s->sock},
	};
	int rc = 0;

	if (!buf_len(&s->show))
		p[4].events |= POLLIN;
	if (buf_len(&s->out))
		p[4].events |= POLLOUT;
	if (!p[4].events)
		p[4].fd = -1; /* a connection that is gone is told when it is read */
	if (poll(p, ARRAY_SIZE(p), -1) < 0)
		return errno == EINTR ? 0 : -errno;
	if (p[0].revents) {
		shell_take_signal(s->end, s->shell->stop_fd);
		s->over = true;
		return 0;
	}
	if (p[1].revents)
		rc = on_change(s);
	if (rc == 0 && p[2].revents)
		rc = on_keys(s);
	if (rc == 0 && p[3].revents)
		rc = write_screen(s);
	if (rc == 0 && p[4].revents & POLLOUT) {
		/* What the daemon said before it went is still read, and the error again. */
		if (buf_flush(&s->out, s->sock) < 0)
			buf_consume(&s->out, buf_len(&s->out));
	}
	if (rc == 0 && p[4].revents & (POLLIN | POLLHUP | POLLERR) && !buf_len(&s->show))
		rc = on_socket(s);
	return rc;
}

/*
 * The rest of the output, unless the user does not want to wait for it, and our
 * close frame as far as it goes at once.
 */
static int drain(struct session *s)
{
	bool hurry = s->end->how == SHELL_SIGNAL || s->end->how == SHELL_LEFT;
	int rc = 0;

	while (rc == 0 && !hurry && buf_len(&s->show)) {
		rc = endpoint_wait(s->screen, POLLOUT, s->shell->stop_fd, 0);
		rc = rc > 0 ? write_screen(s) : rc;
	}
	if (buf_len(&s->out))
		(void)!buf_flush(&s->out, s->sock);
	return rc;
}

/* --- begin and end --- */

/* The answer must be the one to our key: nothing else speaks the protocol. */
static int check_upgrade(const struct http_reply *r, const char *key, struct err *err)
{
	const char *upgrade = http_reply_header(r, "Upgrade");
	const char *connection = http_reply_header(r, "Connection");
	const char *accept = http_reply_header(r, "Sec-WebSocket-Accept");
	char want[WEBSOCKET_ACCEPT_LEN + 1];

	if (websocket_accept(want, key) == 0 && upgrade && connection && accept &&
	    strcasecmp(upgrade, "websocket") == 0 && websocket_has_token(connection, "upgrade") &&
	    strcmp(accept, want) == 0)
		return 0;
	return err_text(err, EPROTO, "the daemon does not speak WebSocket as it should");
}

static int upgrade(struct session *s, struct buf *rest, struct err *err)
{
	char path[SHELL_PATH_MAX], headers[256], key[WEBSOCKET_KEY_LEN + 1];
	struct http_call call = {.to = &s->shell->to,
				 .method = "GET",
				 .path = path,
				 .headers = headers,
				 .timeout_s = 60,
				 .stop_fd = s->shell->stop_fd};
	uint8_t random[WEBSOCKET_KEY_BYTES];
	struct http_reply r;
	int rc;

	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return err_set(err, EIO, "no random bytes");
	websocket_key(key, random);
	shell_path(path, s->shell, "/terminal?stdout=0");
	snprintf(headers, sizeof(headers),
		 "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: %s\r\n"
		 "Sec-WebSocket-Version: " WEBSOCKET_VERSION "\r\n",
		 key);
	http_reply_init(&r, HTTP_CALL_BODY_MAX);
	rc = http_open(&call, 101, &s->sock, &r, rest, err);
	if (rc == 0)
		rc = check_upgrade(&r, key, err);
	http_reply_free(&r);
	return rc;
}

static int watch_changes(int *fd)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGWINCH);
	sigaddset(&set, SIGTSTP);
	sigaddset(&set, SIGCONT);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	*fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return *fd < 0 ? -errno : 0;
}

static int run(struct session *s, const struct buf *rest, struct err *err)
{
	int rc = watch_changes(&s->change_fd);

	if (rc == 0)
		rc = s->screen = terminal_open_output(STDOUT_FILENO);
	if (rc >= 0)
		rc = terminal_raw(&s->terminal, STDIN_FILENO);
	if (rc < 0)
		return err_set(err, -rc, "cannot use the terminal");
	/* The window may have another size by now; this also says what it is in any case. */
	rc = send_size(s);
	if (rc == 0)
		rc = take(s, buf_data(rest), buf_len(rest));
	while (rc == 0 && !s->over)
		rc = turn(s);
	if (rc == 0)
		rc = drain(s);
	terminal_restore(&s->terminal);
	if (rc == -ECANCELED)
		return rc;
	if (rc < 0)
		return err_set(err, -rc,
			       s->bad_screen ? "cannot write what the shell says"
					     : "the connection to the shell broke");
	if (s->end->how == SHELL_LOST)
		return err_text(err, ECONNRESET, "the daemon ended the connection to the shell");
	return 0;
}

int shell_terminal(const struct shell *shell, struct shell_end *end, struct err *err)
{
	struct session s = {.shell = shell, .end = end, .sock = -1, .change_fd = -1, .screen = -1};
	struct buf rest;
	int rc;

	buf_init(&rest, READ_MAX);
	buf_init(&s.out, OUT_MAX);
	buf_init(&s.show, SHOW_MAX);
	websocket_parser_init(&s.in, WEBSOCKET_CLIENT, MESSAGE_MAX);
	rc = upgrade(&s, &rest, err);
	if (rc == 0)
		rc = run(&s, &rest, err);
	websocket_parser_free(&s.in);
	buf_free(&rest);
	buf_free(&s.out);
	buf_free(&s.show);
	close_fd(&s.sock);
	close_fd(&s.change_fd);
	close_fd(&s.screen);
	return rc;
}
