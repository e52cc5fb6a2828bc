/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile host on a stream of the agent: arbitrary bytes, in pieces, read or
 * not read. What requests would do is replaced by jobs that only follow the
 * stream's rules, so that nothing runs and no file is touched.
 *
 * Checked: no memory error, every job is ended exactly once, the send buffer
 * stays within its bound, and the stream is gone after its peer is.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/changes.h"
#include "agent/contexts.h"
#include "agent/exec.h"
#include "agent/files.h"
#include "agent/kept.h"
#include "agent/status.h"
#include "agent/stream.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SEND_BUFFER_MAX (384 * 1024)

static int jobs;

struct job {
	size_t left; /* bytes it still produces */
	bool input;  /* wants STDIN */
};

static struct job *job_new(size_t left)
{
	struct job *j = calloc(1, sizeof(*j));

	assert(j);
	j->left = left;
	jobs++;
	return j;
}

static void job_gone(void *job)
{
	jobs--;
	free(job);
}

static void job_data(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct job *j = job;

	/* Some bodies are refused in the middle. */
	if (len && memchr(p, '!', len)) {
		stream_error(s, ENOSPC, "refused %zu bytes", len);
		job_gone(j);
		return;
	}
	j->left += len;
}

static void job_room(struct stream *s, void *job)
{
	static const uint8_t zeros[FRAME_PAYLOAD_MAX];
	struct job *j = job;

	for (int i = 0; i < 4; i++) {
		size_t max = stream_room(s);

		if (max == 0)
			return;
		if (j->left == 0) {
			stream_put(s, FRAME_END_OUT, NULL, 0);
			stream_done(s);
			job_gone(j);
			return;
		}
		if (max > j->left)
			max = j->left;
		stream_put(s, FRAME_DATA_OUT, zeros, max);
		j->left -= max;
	}
	stream_yield(s);
}

static void job_end(struct stream *s, void *job)
{
	job_room(s, job);
}

static void job_cancel(struct stream *s, void *job)
{
	stream_final(s, FRAME_EXIT, json_pack("{s:i}", "exit_code", 137));
	job_gone(job);
}

static int job_input(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct job *j = job;
	uint8_t ack[4] = {(uint8_t)len, (uint8_t)(len >> 8), (uint8_t)(len >> 16), 0};

	(void)p;
	/* Only behind the code. */
	assert(!s->body);
	if (!j->input || len == 13)
		return -EPROTO;
	if (stream_room(s))
		stream_put(s, FRAME_STDIN_ACK, ack, sizeof(ack));
	return 0;
}

static int job_resize(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct terminal_size size;
	struct job *j = job;
	struct err err;

	assert(!s->body);
	if (!j->input || request_parse_resize(p, len, &size, &err) < 0)
		return -EPROTO;
	assert(size.cols >= 1 && size.cols <= REQUEST_TERMINAL_MAX);
	assert(size.rows >= 1 && size.rows <= REQUEST_TERMINAL_MAX);
	return 0;
}

static int job_input_end(struct stream *s, void *job)
{
	struct job *j = job;
	bool input = j->input;

	assert(!s->body);
	j->input = false;
	return input ? 0 : -EPROTO;
}

/* Some end of it. */
static void job_interrupt(struct stream *s, void *job)
{
	struct job *j = job;

	if (j->left % 2)
		return;
	stream_final(s, FRAME_EXIT, json_pack("{s:i}", "exit_code", 130));
	job_gone(job);
}

static const struct stream_ops body_ops = {
	.data = job_data,
	.end = job_end,
	.input = job_input,
	.input_end = job_input_end,
	.resize = job_resize,
	.interrupt = job_interrupt,
	.cancel = job_cancel,
	.room = job_room,
	.gone = job_gone,
};

static const struct stream_ops source_ops = {
	.room = job_room,
	.gone = job_gone,
};

void exec_begin(struct stream *s, struct request_exec *r)
{
	struct job *j = job_new(0);

	assert(!r->cwd || *r->cwd);
	assert(r->timeout_ms >= 0 && r->output_limit >= 0);
	assert(!r->root || r->has_user);
	assert(!r->context || strlen(r->context) - 1 < REQUEST_ID_MAX);
	assert((r->language == LANGUAGE_ARGV) == (r->argv != NULL) && (!r->argv || *r->argv[0]));
	assert(!r->keep || (strlen(r->keep) - 1 < REQUEST_ID_MAX && r->language));
	assert((r->terminal.cols > 0) == (r->terminal.rows > 0));
	assert(r->terminal.cols == 0 || r->keep);
	j->input = r->input;
	for (size_t i = 0; i < r->nenv; i++)
		assert(strchr(r->env[i], '=') > r->env[i]);
	request_exec_free(r);
	stream_set_job(s, &body_ops, j);
}

void kept_request(struct stream *s, const struct request_command *r)
{
	assert((r->op == COMMAND_LIST) == (r->id == NULL));
	assert(!r->id || strlen(r->id) - 1 < REQUEST_ID_MAX);
	assert(r->offset[0] >= -1 && r->offset[1] >= -1);
	assert((r->op == COMMAND_SIGNAL) == (r->signal >= 1 && r->signal <= 64));
	if (r->op != COMMAND_ATTACH) {
		stream_final(s, FRAME_OK, json_object());
		return;
	}
	stream_set_job(s, &body_ops, job_new((size_t)(r->offset[0] & 0xfffff)));
	((struct job *)s->job)->input = r->input;
	job_room(s, s->job);
}

void contexts_request(struct stream *s, const struct request_context *r)
{
	assert((r->op == CONTEXT_LIST) == (r->id == NULL));
	assert(!r->cwd || (*r->cwd && r->op == CONTEXT_CREATE));
	stream_final(s, FRAME_OK, json_object());
}

void fileop_begin(struct stream *s, const struct request_fileop *q)
{
	assert(*q->path && q->depth >= 1 && q->depth <= 16 && q->mode >= -1 && q->mode <= 07777);
	assert((q->op == FILEOP_RENAME) == (q->to != NULL));
	assert(q->op != FILEOP_CHMOD || q->mode >= 0);
	if (q->op != FILEOP_LIST) {
		stream_final(s, FRAME_OK, json_object());
		return;
	}
	stream_set_job(s, &source_ops, job_new(q->depth * 20000));
	job_room(s, s->job);
}

void put_begin(struct stream *s, struct request_file *r)
{
	assert(*r->path && r->mode >= -1 && r->mode <= 0777);
	assert(r->offset >= 0 && r->length >= -1);
	request_file_free(r);
	stream_set_job(s, &body_ops, job_new(0));
}

void get_begin(struct stream *s, struct request_file *r)
{
	struct job *j = job_new(strlen(r->path) * 40000);

	assert(*r->path);
	request_file_free(r);
	stream_set_job(s, &source_ops, j);
	job_room(s, j);
}

void renewal_begin(struct stream *s, const struct request_renew *r)
{
	assert(r->realtime_ns > 0 && r->generation >= 0 && r->kind <= RENEW_FORK);
	assert(r->hostname[0] && r->id[0] && strlen(r->machine_id) == 32);
	assert(strlen(r->boot_id) == 36 && (r->reseed || r->kind == RENEW_FORK));
	if (r->entropy[0] == 0)
		stream_error(s, EPERM, "refused");
	else
		stream_set_job(s, &source_ops, job_new(0));
}

void egress_request(struct stream *s, const struct request_egress *r)
{
	assert(!r->ca || strlen(r->ca) <= REQUEST_CA_MAX);
	if (r->on)
		stream_final(s, FRAME_OK, json_object());
	else
		stream_error(s, EIO, "refused");
}

void changes_begin(struct stream *s, const struct request_changes *r)
{
	struct job *j = job_new(0);

	for (size_t i = 0; i < r->npaths; i++)
		j->left += strlen(r->paths[i]) * 1000;
	stream_set_job(s, &source_ops, j);
	job_room(s, j);
}

void hashes_begin(struct stream *s)
{
	stream_set_job(s, &body_ops, job_new(0));
}

void repl_warm(struct repl *r, struct stream *s)
{
	(void)r;
	stream_set_job(s, &source_ops, job_new(5));
	job_room(s, s->job);
}

/* Freezes and thaws at once; what rests and wakes up is the real thing. */
void freeze_begin(struct stream *s)
{
	s->agent->freezer.state = FREEZE_FROZEN;
	server_rest_streams(s->server, s);
	stream_final(s, FRAME_OK, json_object());
}

void freeze_thaw(struct stream *s, const struct request_thaw *r)
{
	for (int i = 0; i < REQUEST_ENTROPY; i++)
		assert(r->reseed || r->entropy[i] == 0);
	s->agent->freezer.state = FREEZE_NONE;
	server_wake_streams(s->server);
	stream_final(s, FRAME_OK, json_object());
}

bool freeze_allows(const struct agent *a, uint8_t type)
{
	return a->freezer.state == FREEZE_NONE || type == FRAME_THAW || type == FRAME_STATUS ||
	       type == FRAME_CHANGES || type == FRAME_HASHES;
}

json_t *status_object(struct agent *a)
{
	(void)a;
	return json_pack("{s:s}", "repl", "absent");
}

static void run(struct agent *a, int times)
{
	for (int i = 0; i < times; i++) {
		assert(loop_run_once(&a->loop, 0) == 0);
		list_for_each (s, &a->server.streams, struct stream, link)
			assert(s->out.out.cap <= SEND_BUFFER_MAX);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct agent a;
	static uint8_t sink[65536];
	int pair[2], idle[2];

	if (size < 2)
		return 0;
	jobs = 0;
	a.server = (struct server){.agent = &a, .fd = -1};
	a.freezer = (struct freezer){0};
	list_init(&a.server.streams);
	assert(loop_init(&a.loop) == 0);
	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, idle) == 0);
	/* The second one is there to rest, now and then with something to say. */
	assert(stream_new(&a.server, idle[0]));
	assert(stream_new(&a.server, pair[0]));
	/* First byte: how large the pieces are; second: in which turns the answers are read. */
	for (size_t at = 2, turn = 0; at < size; turn++) {
		size_t piece = 1u + data[0] * 8u;
		ssize_t n;

		if (piece > size - at)
			piece = size - at;
		n = send(pair[1], data + at, piece, MSG_NOSIGNAL);
		if (n > 0)
			at += (size_t)n;
		if (n > 0 && data[1] & 1)
			n = send(idle[1], data + at - (size_t)n, (size_t)n, MSG_NOSIGNAL) >= 0 ? n
											       : -1;
		run(&a, 2);
		if (data[1] & 1u << (turn % 8) || n < 0)
			while (recv(pair[1], sink, sizeof(sink), 0) > 0)
				;
		if (list_empty(&a.server.streams) || turn > size * 2)
			break;
	}
	close(pair[1]);
	close(idle[1]);
	run(&a, 64);
	/* What rests notices nothing until it wakes up, or is abandoned. */
	if (data[0] & 1)
		server_abandon_streams(&a.server, NULL);
	server_wake_streams(&a.server);
	run(&a, 64);
	assert(list_empty(&a.server.streams) && a.server.nstreams == 0 && a.server.nresting == 0);
	assert(jobs == 0);
	loop_free(&a.loop);
	return 0;
}
