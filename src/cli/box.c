/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Supervision of the emulated host on one loop. Invariant: every stream that
 * has not seen its end of file counts in streams_open, the process as one
 * more; on_ended is called when the count gets to zero.
 */
#define _GNU_SOURCE
#include "cli/box.h"
#include "cli/cli.h"

#include "lib/io.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

static void box_one_less(struct box *b)
{
	if (--b->streams_open || b->ended)
		return;
	b->ended = true;
	loop_timer_cancel(&b->stop_timer);
	loop_timer_cancel(&b->boot_timer);
	loop_timer_cancel(&b->pulse_timer);
	boxpause_free(&b->pause);
	b->events->ended(b->arg);
}

/* Reads what is there: true when the stream has ended. */
static bool stream_read(struct box_stream *s, char *data, size_t size, ssize_t *n)
{
	*n = io_read_some(s->src.fd, data, size);
	if (*n == -EAGAIN) {
		*n = 0;
		return false;
	}
	if (*n > 0)
		return false;
	*n = 0;
	loop_del(&s->src);
	return true;
}

/* QEMU's remarks on processor features that the emulation lacks are not news. */
static void on_console_line(void *arg, const char *line)
{
	struct box *b = arg;

	if (strstr(line, "warning: TCG doesn't support requested feature"))
		return;
	conlog_write(&b->console, line, strlen(line));
	conlog_write(&b->console, "\n", 1);
}

static void on_pulse_timer(struct loop_timer *t)
{
	struct box *b = t->arg;

	/* A machine that takes none is busy: it will have its interrupt. */
	if (io_send_some(b->qemu.fds[QEMU_PULSE], "", 1) < 0)
		errno = 0;
	loop_timer_set(b->loop, t, BOX_PULSE_MS * 1000000ull);
}

static void on_report_line(void *arg, const char *line)
{
	struct box *b = arg;

	if (strcmp(line, "started") == 0) {
		b->started = true;
	} else if (strcmp(line, "booted") == 0) {
		loop_timer_cancel(&b->boot_timer);
		on_pulse_timer(&b->pulse_timer);
	}
	b->events->report(b->arg, line);
}

static void on_output_line(void *arg, const char *line)
{
	struct box *b = arg;

	b->events->output(b->arg, line);
}

/*
 * QMP: a greeting, an answer to our first command, events, and the answer to
 * the one command with an id. QEMU prints one object a line.
 */
static void on_monitor_line(void *arg, const char *line)
{
	struct box *b = arg;

	if (!strstr(line, "\"id\": \"forward\"")) {
		boxpause_line(&b->pause, line);
		return;
	}
	if (strstr(line, "\"return\": \"\"") && qemu_widen_port(&b->qemu, b->port) < 0)
		cli_say("many connections at the same moment may be slow: QEMU's port has room for "
			"one that waits");
	b->events->forwarded(b->arg, strstr(line, "\"return\": \"\"") ? NULL : line);
}

static void stream_event(struct box_stream *s, lines_fn *fn)
{
	struct box *b = s->box;
	char data[4096];
	ssize_t n;
	bool end = stream_read(s, data, sizeof(data), &n);

	lines_feed(&s->lines, data, (size_t)n, fn, b);
	if (end) {
		lines_end(&s->lines, fn, b);
		box_one_less(b);
	}
}

static void on_console(struct loop_src *src, uint32_t events)
{
	(void)events;
	stream_event(src->arg, on_console_line);
}

static void on_output(struct loop_src *src, uint32_t events)
{
	(void)events;
	stream_event(src->arg, on_output_line);
}

static void on_monitor(struct loop_src *src, uint32_t events)
{
	(void)events;
	stream_event(src->arg, on_monitor_line);
}

/* Sends what the machine takes of the waiting orders; the rest when it has room. */
static void box_flush_orders(struct box *b)
{
	int rc = buf_flush(&b->orders, b->qemu.fds[QEMU_ORDERS]);

	if (rc < 0)
		buf_free(&b->orders); /* it has ended; the reading side will notice */
	loop_mod(&b->reports.src, EPOLLIN | (rc > 0 ? EPOLLOUT : 0));
}

static void on_orders(struct loop_src *src, uint32_t events)
{
	struct box_stream *s = src->arg;

	if (events & EPOLLOUT)
		box_flush_orders(s->box);
	if (events & ~(uint32_t)EPOLLOUT)
		stream_event(s, on_report_line);
}

/* Nothing inside could hear that it is to end. What was written before is on the disk. */
static void end_as_it_stands(struct box *b)
{
	if (b->killed)
		return;
	cli_say("what runs in the emulated host cannot end in order while that stands still: "
		"ending "
		"it as it is");
	box_kill(b);
}

static void on_stands(void *arg)
{
	struct box *b = arg;

	if (b->stopping)
		end_as_it_stands(b);
}

/* Time did not pass for it. */
static void on_goes_on(void *arg)
{
	struct box *b = arg;
	char line[64];
	int n = snprintf(line, sizeof(line), "time %lld\n", (long long)time(NULL));

	if (buf_append(&b->orders, line, (size_t)n) == 0)
		box_flush_orders(b);
}

static void on_relay_done(struct relay *r)
{
	box_one_less(r->arg);
}

static void on_process(struct loop_src *src, uint32_t events)
{
	struct box *b = src->arg;

	(void)events;
	if (waitpid(b->qemu.pid, &b->wait_status, WNOHANG) != b->qemu.pid)
		return;
	b->qemu.pid = -1;
	loop_del(src);
	box_one_less(b);
}

static int box_watch(struct box *b, struct box_stream *s, enum qemu_stream which, loop_src_fn *fn)
{
	int rc;

	s->box = b;
	s->src = (struct loop_src){.fd = -1, .fn = fn, .arg = s};
	rc = loop_add(b->loop, &s->src, b->qemu.fds[which], EPOLLIN);
	if (rc == 0)
		b->streams_open++;
	return rc;
}

static int box_relay(struct box *b, struct relay *r, enum qemu_stream which, int dst)
{
	int rc;

	*r = (struct relay){.done = on_relay_done, .arg = b};
	rc = relay_start(r, b->loop, b->qemu.fds[which], dst);
	if (rc == 0)
		b->streams_open++;
	return rc;
}

static int box_watch_all(struct box *b)
{
	int rc = box_watch(b, &b->console_in, QEMU_CONSOLE, on_console);

	if (rc == 0)
		rc = box_watch(b, &b->reports, QEMU_ORDERS, on_orders);
	if (rc == 0)
		rc = box_watch(b, &b->monitor, QEMU_MONITOR, on_monitor);
	if (rc == 0 && b->events->output)
		rc = box_watch(b, &b->output, QEMU_OUTPUT, on_output);
	else if (rc == 0)
		rc = box_relay(b, &b->out_relay, QEMU_OUTPUT, STDOUT_FILENO);
	if (rc == 0)
		rc = box_relay(b, &b->err_relay, QEMU_ERRORS, STDERR_FILENO);
	if (rc == 0) {
		b->process = (struct loop_src){.fd = -1, .fn = on_process, .arg = b};
		rc = loop_add(b->loop, &b->process, b->qemu.pidfd, EPOLLIN);
		b->streams_open += rc == 0;
	}
	return rc;
}

static void on_stop_timer(struct loop_timer *t)
{
	box_kill(t->arg);
}

static unsigned int boot_limit_s(void)
{
	const char *text = getenv("PODFLARE_BOX_BOOT_TIMEOUT");
	struct err err = {0};
	uint64_t n = BOX_BOOT_S;

	if (text && cli_parse_number("PODFLARE_BOX_BOOT_TIMEOUT", text, 1, 3600, &n, &err) < 0)
		cli_say("%s; using %u", err.msg, BOX_BOOT_S);
	return (unsigned int)n;
}

static void on_boot_timer(struct loop_timer *t)
{
	struct box *b = t->arg;

	b->stuck = true;
	box_kill(b);
}

int box_start(struct box *b, struct loop *l, const struct qemu_config *c, const char *console_path,
	      const struct box_events *events, void *arg, struct err *err)
{
	static const char hello[] = "{\"execute\": \"qmp_capabilities\"}\n";
	int rc;

	*b = (struct box){.loop = l, .events = events, .arg = arg};
	b->qemu.pid = b->qemu.pidfd = -1;
	b->stop_timer = (struct loop_timer){.fn = on_stop_timer, .arg = b};
	b->boot_timer = (struct loop_timer){.fn = on_boot_timer, .arg = b};
	b->pulse_timer = (struct loop_timer){.fn = on_pulse_timer, .arg = b};
	buf_init_secret(&b->config, 1 << 20); /* with keys */
	b->pause = (struct boxpause){.stands = on_stands, .goes_on = on_goes_on, .arg = b};
	buf_init_secret(&b->orders, BOX_ORDERS_MAX);
	rc = conlog_open(&b->console, console_path, err);
	if (rc < 0)
		return rc;
	rc = qemu_start(&b->qemu, c, err);
	if (rc < 0) {
		conlog_close(&b->console);
		return rc;
	}
	rc = boxpause_init(&b->pause, l, c, b->qemu.fds[QEMU_MONITOR]);
	if (rc == 0)
		rc = box_watch_all(b);
	if (rc == 0)
		rc = io_write_full(b->qemu.fds[QEMU_MONITOR], hello, sizeof(hello) - 1);
	if (rc < 0) {
		box_free(b);
		return err_set(err, -rc, "cannot talk to the emulated host");
	}
	b->boot_limit_s = boot_limit_s();
	loop_timer_set(l, &b->boot_timer, b->boot_limit_s * 1000000000ull);
	return 0;
}

bool box_retry(struct box *b, unsigned int *tries)
{
	if (!b->stuck || ++*tries >= BOX_BOOT_TRIES)
		return false;
	cli_say("the emulated host did not boot within %u s, starting it again", b->boot_limit_s);
	b->loop->quit = 0;
	box_free(b);
	return true;
}

static int no_room(struct err *err, const char *what)
{
	return err_text(err, E2BIG, "%s is too large for the emulated host", what);
}

static int give(struct box *b, const char *name, bool program, const char *data, size_t len,
		struct err *err)
{
	char head[256];
	int n;

	/* The name goes into one line of words. */
	if (!*name || strpbrk(name, " \t\r\n\\/") || name[0] == '.' || name[0] == '-')
		return err_text(err, EINVAL, "'%s' cannot be a file's name in the emulated host",
				name);
	n = snprintf(head, sizeof(head), "file %s %s %zu\n", name, program ? "755" : "644", len);
	if (n >= (int)sizeof(head) || buf_append(&b->orders, head, (size_t)n) < 0 ||
	    buf_append(&b->orders, data, len) < 0)
		return no_room(err, name);
	return 0;
}

int box_give_data(struct box *b, const char *name, const char *data, size_t len, struct err *err)
{
	return give(b, name, false, data, len, err);
}

int box_give_file(struct box *b, const char *name, const char *path, struct err *err)
{
	_cleanup_free char *data = NULL;
	size_t len;
	int rc = io_read_file(path, BOX_ORDERS_MAX / 2, &data, &len);

	if (rc < 0)
		return err_set(err, -rc, "cannot read %s", path);
	return give(b, name, access(path, X_OK) == 0, data, len, err);
}

/* Appends `word` as the shell reads it back: in single quotes, with '\'' for a quote. */
static int append_quoted(struct buf *b, const char *word)
{
	int rc = buf_append(b, "'", 1);

	for (; rc == 0 && *word; word++)
		rc = *word == '\'' ? buf_append(b, "'\\''", 4) : buf_append(b, word, 1);
	return rc == 0 ? buf_append(b, "'", 1) : rc;
}

int box_give_mode(struct box *b, const char *mode, struct err *err)
{
	char line[64];
	int n = snprintf(line, sizeof(line), "mode=%s\n", mode);

	return buf_append(&b->config, line, (size_t)n) < 0 ? no_room(err, mode) : 0;
}

int box_give_args(struct box *b, char *const *argv, size_t n, struct err *err)
{
	int rc = buf_append(&b->config, "set --", 6);

	for (size_t i = 0; rc == 0 && i < n; i++) {
		rc = buf_append(&b->config, " ", 1);
		if (rc == 0)
			rc = append_quoted(&b->config, argv[i]);
	}
	if (rc == 0)
		rc = buf_append(&b->config, "\n", 1);
	return rc < 0 ? no_room(err, "the argument list") : 0;
}

int box_give_env(struct box *b, const char *name, const char *value, struct err *err)
{
	int rc = buf_append(&b->config, "export ", 7);

	if (rc == 0)
		rc = buf_append(&b->config, name, strlen(name));
	if (rc == 0)
		rc = buf_append(&b->config, "=", 1);
	if (rc == 0)
		rc = append_quoted(&b->config, value);
	if (rc == 0)
		rc = buf_append(&b->config, "\n", 1);
	return rc < 0 ? no_room(err, name) : 0;
}

int box_go(struct box *b, struct err *err)
{
	char head[64];
	int n = snprintf(head, sizeof(head), "file config 600 %zu\n", buf_len(&b->config));

	if (buf_append(&b->orders, head, (size_t)n) < 0 ||
	    buf_append(&b->orders, buf_data(&b->config), buf_len(&b->config)) < 0 ||
	    buf_append(&b->orders, "go\n", 3) < 0)
		return no_room(err, "the list of orders");
	box_flush_orders(b);
	return 0;
}

void box_forward(struct box *b, const char *host, uint16_t port, uint16_t guest_port)
{
	char command[384];
	int n = snprintf(command, sizeof(command),
			 "{\"execute\": \"human-monitor-command\", \"id\": \"forward\", "
			 "\"arguments\": {\"command-line\": "
			 "\"hostfwd_add " QEMU_NETDEV " tcp:%s:%u-" QEMU_GUEST_IP ":%u\"}}\n",
			 host, port, guest_port);
	int rc = io_write_full(b->qemu.fds[QEMU_MONITOR], command, (size_t)n);

	b->port = port;
	if (rc < 0)
		b->events->forwarded(b->arg, strerror(-rc));
}

void box_stop(struct box *b)
{
	static const uint64_t limit_ns = BOX_STOP_MS * 1000000ull;

	if (b->stopping || b->ended)
		return;
	b->stopping = true;
	/* Before its program runs there is nothing inside that could lose anything. */
	if (!b->started || buf_append(&b->orders, "stop\n", 5) < 0) {
		box_kill(b);
		return;
	}
	if (boxpause_stands(&b->pause) && !boxpause_try(&b->pause)) {
		end_as_it_stands(b);
		return;
	}
	loop_timer_set(b->loop, &b->stop_timer, limit_ns);
	box_flush_orders(b);
}

void box_kill(struct box *b)
{
	b->stopping = b->killed = true;
	if (b->qemu.pid > 0)
		kill(b->qemu.pid, SIGKILL);
}

void box_free(struct box *b)
{
	loop_timer_cancel(&b->stop_timer);
	loop_timer_cancel(&b->boot_timer);
	loop_timer_cancel(&b->pulse_timer);
	boxpause_free(&b->pause);
	if (b->qemu.pid > 0) {
		kill(b->qemu.pid, SIGKILL);
		waitpid(b->qemu.pid, &b->wait_status, 0);
		b->qemu.pid = -1;
	}
	loop_del(&b->console_in.src);
	loop_del(&b->reports.src);
	loop_del(&b->output.src);
	loop_del(&b->monitor.src);
	loop_del(&b->process);
	relay_stop(&b->out_relay);
	relay_stop(&b->err_relay);
	for (int i = 0; i < QEMU_STREAMS; i++)
		close_fd(&b->qemu.fds[i]);
	close_fd(&b->qemu.pidfd);
	buf_free(&b->config);
	buf_free(&b->orders);
	conlog_close(&b->console);
}
