/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The body of an EXEC request. The job that collects it is replaced on the
 * same stream by the job that runs it (command.c, kept.c, cell.c).
 */
#define _GNU_SOURCE
#include "agent/exec.h"
#include "agent/agent.h"
#include "agent/command.h"
#include "agent/contexts.h"
#include "agent/kept.h"
#include "agent/stream.h"
#include "lib/io.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXEC_CODE_MAX ((size_t)4 * 1024 * 1024)
/* Code up to this size is kept in memory, until it is known who runs it. */
#define EXEC_CODE_SHORT ((size_t)4096)

struct exec_body {
	struct request_exec req;
	struct code code;
	struct alarm deadline;
	enum exec_stop stop;
};

void code_free(struct code *c)
{
	close_fd(&c->fd);
	free(c->text);
	c->text = NULL;
}

/* From memory into a memfd. */
static int code_spill(struct code *c)
{
	int rc = 0;

	if (c->fd >= 0)
		return 0;
	c->fd = memfd_create("code", MFD_CLOEXEC);
	if (c->fd < 0)
		return -errno;
	if (c->size)
		rc = io_write_full(c->fd, c->text, c->size);
	free(c->text);
	c->text = NULL;
	return rc;
}

static int code_add(struct code *c, const uint8_t *p, size_t len)
{
	char *text;
	int rc;

	if (c->fd >= 0 || c->size + len > EXEC_CODE_SHORT) {
		rc = code_spill(c);
		if (rc == 0)
			rc = io_write_full(c->fd, p, len);
	} else {
		text = realloc(c->text, c->size + len + 1);
		rc = text ? 0 : -ENOMEM;
		if (text) {
			memcpy(text + c->size, p, len);
			c->text = text;
		}
	}
	if (rc == 0)
		c->size += len;
	return rc;
}

static void exec_body_free(void *job)
{
	struct exec_body *b = job;

	alarm_cancel(&b->deadline);
	code_free(&b->code);
	request_exec_free(&b->req);
	free(b);
}

static void exec_on_data(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct exec_body *b = job;
	int rc;

	if (b->code.size + len > EXEC_CODE_MAX) {
		stream_error(s, E2BIG, "the code is longer than %zu bytes", EXEC_CODE_MAX);
	} else if (b->req.language == LANGUAGE_ARGV && len) {
		stream_error(s, EINVAL, "language \"argv\" takes no code");
	} else if (memchr(p, '\0', len)) {
		stream_error(s, EINVAL, "the code contains a NUL byte");
	} else {
		rc = code_add(&b->code, p, len);
		if (rc == 0)
			return;
		stream_error(s, -rc, "cannot store the code: %s", strerror(-rc));
	}
	exec_body_free(b);
}

static void exec_on_end(struct stream *s, void *job)
{
	struct exec_body *b = job;
	bool cell = !b->req.keep && b->req.language == LANGUAGE_PYTHON;
	struct repl *r = contexts_find(s->agent, b->req.context);
	int rc = b->stop || cell ? 0 : code_spill(&b->code);
	struct code code = b->code;

	b->code = (struct code){.fd = -1};
	b->req.left_ns = alarm_left(&b->deadline);
	if (b->stop) {
		struct exec_end end = {.stop = b->stop, .exit_code = 128 + SIGINT};

		code_free(&code);
		stream_final(s, FRAME_EXIT, exec_exit_object(&end, NULL));
	} else if (rc < 0) {
		code_free(&code);
		stream_error(s, -rc, "cannot store the code: %s", strerror(-rc));
	} else if (b->req.keep) {
		kept_start(s, &b->req, &code);
	} else if (!cell) {
		command_start(s, &b->req, &code);
	} else if (r) {
		repl_exec(r, s, &b->req, &code);
	} else {
		code_free(&code);
		stream_error(s, ENOENT, "no such context");
	}
	exec_body_free(b);
}

/* The code is not complete yet; EXIT follows when it is. */
static void exec_on_cancel(struct stream *s, void *job)
{
	struct exec_body *b = job;

	(void)s;
	if (!exec_must_end(b->stop))
		b->stop = EXEC_CANCELLED;
}

static void exec_on_interrupt(struct stream *s, void *job)
{
	struct exec_body *b = job;

	(void)s;
	if (b->stop == EXEC_RUNS)
		b->stop = EXEC_INTERRUPTED;
}

static void exec_on_deadline(void *arg)
{
	struct exec_body *b = arg;

	b->stop = EXEC_TIMED_OUT;
}

static const struct stream_ops exec_ops = {
	.data = exec_on_data,
	.end = exec_on_end,
	.cancel = exec_on_cancel,
	.interrupt = exec_on_interrupt,
	.gone = exec_body_free,
};

void exec_begin(struct stream *s, struct request_exec *r)
{
	struct exec_body *b = calloc(1, sizeof(*b));

	if (!b) {
		stream_error(s, ENOMEM, "cannot store the code: out of memory");
		request_exec_free(r);
		return;
	}
	b->req = *r;
	b->code.fd = -1;
	alarm_init(&b->deadline, s->agent, exec_on_deadline, b);
	if (b->req.timeout_ms)
		alarm_set(&b->deadline, (uint64_t)b->req.timeout_ms * 1000000);
	stream_set_job(s, &exec_ops, b);
}
