/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Output pipes. Invariants: there is a sink exactly while the captures are
 * begun, and none while there are logs; a pipe is in the loop exactly while it may be read
 * (a full stream takes it out, for epoll reports hang-up of a pipe without
 * end); during a drain not more than `owed` bytes are read of each pipe; one
 * callback reads at most one scratch buffer of each. A drain that is over at once (nothing was
 * written, mostly) leaves the loop as it is.
 */
#define _GNU_SOURCE
#include "agent/output.h"
#include "agent/agent.h"
#include "agent/stream.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

/* Larger than the default: fewer switches between writer and agent. */
#define OUTPUT_PIPE_SIZE (256 * 1024)
/* Ended commands whose children still hold their pipes; beyond it the oldest lose theirs. */
#define OUTPUT_LEFTOVERS_MAX 1024

static void output_release(struct output *o)
{
	for (int i = 0; i < 2; i++) {
		capture_end(&o->pipe[i].capture, false);
		o->pipe[i].log = NULL;
	}
	o->sink = NULL;
	o->logged = NULL;
	o->limit = (struct output_limit){0};
	o->over = false;
	o->lossy = o->hurry = false;
}

static void output_free(struct output *o)
{
	output_release(o);
	for (int i = 0; i < 2; i++) {
		loop_del(&o->pipe[i].src);
		close_fd(&o->pipe[i].fd);
	}
	if (!list_empty(&o->link)) {
		list_del(&o->link);
		o->agent->nleftovers--;
	}
	loop_defer_free(&o->agent->loop, o);
}

static void output_keep_tail(struct output *o, const uint8_t *p, size_t n)
{
	if (n > sizeof(o->tail)) {
		p += n - sizeof(o->tail);
		n = sizeof(o->tail);
	}
	if (o->tail_len + n > sizeof(o->tail)) {
		size_t drop = o->tail_len + n - sizeof(o->tail);

		memmove(o->tail, o->tail + drop, o->tail_len - drop);
		o->tail_len -= drop;
	}
	memcpy(o->tail + o->tail_len, p, n);
	o->tail_len += n;
}

static void output_pipe_closed(struct output_pipe *p)
{
	loop_del(&p->src);
	close_fd(&p->fd);
	p->owed = 0;
}

/*
 * What the next read may pass on: 0 when its bytes are for the log alone, or
 * are discarded; -ENOBUFS when it has to wait for room.
 */
static ssize_t output_may_pass(struct output_pipe *p, size_t max)
{
	struct output *o = p->out;
	uint64_t head = o->sink ? p->capture.head_left : 0;

	if (head == 0)
		return 0;
	if (stream_room(o->sink) > 0)
		return head < max ? (ssize_t)head : (ssize_t)max;
	if (!o->lossy)
		return -ENOBUFS;
	capture_end_head(&p->capture);
	return 0;
}

static void output_check_limit(const struct output_pipe *p)
{
	struct output *o = p->out;

	if (!o->limit.over || o->over || p->capture.total <= o->limit.bytes)
		return;
	o->over = true;
	o->limit.over(o->limit.arg);
}

/* Reads once and passes it on: bytes read, 0 when there is nothing (more) to read, -ENOBUFS. */
static ssize_t output_move(struct output_pipe *p)
{
	struct output *o = p->out;
	size_t max = sizeof(o->agent->scratch);
	uint8_t *buf = o->agent->scratch;
	ssize_t n, pass;

	if (p->fd < 0)
		return 0;
	pass = output_may_pass(p, max);
	if (pass < 0)
		return pass;
	if (pass > 0)
		max = (size_t)pass;
	if (o->drained && p->owed < max)
		max = p->owed;
	if (max == 0)
		return 0;
	n = io_read_some(p->fd, buf, max);
	if (n == -EAGAIN)
		return 0;
	if (n <= 0) {
		output_pipe_closed(p);
		return 0;
	}
	if (o->drained)
		p->owed -= (size_t)n;
	if (o->sink) {
		capture_add(&p->capture, buf, (size_t)n, pass > 0);
		output_check_limit(p);
	}
	if (pass > 0)
		stream_put(o->sink, p->type, buf, (size_t)n);
	else if (p->log)
		keep_log_append(p->log, buf, (size_t)n);
	else if (!o->sink && p->type == FRAME_STDERR)
		output_keep_tail(o, buf, (size_t)n);
	return n;
}

static void output_arm(struct output_pipe *p)
{
	/* Out of memory in the kernel: the pipe is lost, its writer gets SIGPIPE, all else goes on.
	 */
	if (p->fd >= 0 && !p->src.loop &&
	    loop_add(&p->out->agent->loop, &p->src, p->fd, EPOLLIN) < 0)
		output_pipe_closed(p);
}

static void output_disarm(struct output *o)
{
	for (int i = 0; i < 2; i++)
		loop_del(&o->pipe[i].src);
}

/* Passes on the tail of one pipe: false when that has to wait for room. */
static bool output_send_tail(struct output_pipe *p)
{
	struct output *o = p->out;
	uint8_t *buf = o->agent->scratch;
	size_t n;

	while (!o->hurry || stream_room(o->sink) > 0) {
		size_t max = stream_room(o->sink);

		if (max == 0)
			return false;
		n = capture_tail(&p->capture, buf, max);
		if (n == 0)
			break;
		stream_put(o->sink, p->type, buf, n);
	}
	return true;
}

static bool output_send_tails(struct output *o)
{
	if (!o->sink)
		return true;
	for (int i = 0; i < 2; i++)
		if (!output_send_tail(&o->pipe[i]))
			return false;
	return true;
}

/* Drains as far as the stream takes it; true when nothing is owed any more. */
static bool output_drain_step(struct output *o)
{
	for (int i = 0; i < 2; i++)
		while (o->pipe[i].owed) {
			ssize_t n = output_move(&o->pipe[i]);

			if (n == -ENOBUFS)
				return false;
			if (n == 0)
				o->pipe[i].owed = 0; /* somebody else has read from the pipe */
		}
	if (!o->ending)
		return true;
	if (!o->finished && o->sink)
		for (int i = 0; i < 2; i++)
			capture_finish(&o->pipe[i].capture);
	o->finished = true;
	return output_send_tails(o);
}

static void output_drain_done(struct output *o)
{
	output_drained_fn *fn = o->drained;

	o->drained = NULL;
	o->ending = o->finished = false;
	fn(o);
}

static void output_on_pipe(struct loop_src *src, uint32_t events)
{
	struct output_pipe *p = src->arg;
	struct output *o = p->out;
	struct stream *sink = o->sink;

	(void)events;
	if (output_move(p) == -ENOBUFS)
		output_disarm(o); /* output_resume() comes when the stream has room */
	else if (!list_empty(&o->link) && o->pipe[0].fd < 0 && o->pipe[1].fd < 0)
		output_free(o);
	else if (o->logged)
		o->logged(o->logged_arg);
	if (sink)
		stream_flush(sink);
}

static struct output *output_new(struct agent *a)
{
	struct output *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->agent = a;
	list_init(&o->link);
	for (int i = 0; i < 2; i++) {
		struct output_pipe *p = &o->pipe[i];

		*p = (struct output_pipe){.out = o, .fd = -1};
		p->type = i == 0 ? FRAME_STDOUT : FRAME_STDERR;
		p->src = (struct loop_src){.fd = -1, .fn = output_on_pipe, .arg = p};
	}
	return o;
}

struct output *output_open_terminal(struct agent *a, int master)
{
	struct output *o = output_new(a);

	if (!o) {
		close(master);
		return NULL;
	}
	o->pipe[0].fd = master;
	o->pipe[0].terminal = true;
	output_arm(&o->pipe[0]);
	if (o->pipe[0].fd >= 0)
		return o;
	output_free(o);
	errno = ENOMEM;
	return NULL;
}

int output_terminal(const struct output *o)
{
	return o->pipe[0].terminal ? o->pipe[0].fd : -1;
}

struct output *output_open(struct agent *a, int *child_out, int *child_err)
{
	struct output *o = output_new(a);
	int *child[2] = {child_out, child_err};
	int fds[2], saved;

	if (!o)
		return NULL;
	*child_out = *child_err = -1;
	for (int i = 0; i < 2; i++) {
		if (pipe2(fds, O_CLOEXEC) < 0)
			goto fail;
		o->pipe[i].fd = fds[0];
		*child[i] = fds[1];
		/* Best effort: the size is only a matter of speed. */
		if (fcntl(fds[0], F_SETPIPE_SZ, OUTPUT_PIPE_SIZE) < 0)
			errno = 0;
		if (io_set_nonblock(fds[0], 1) < 0)
			goto fail;
		/* The user may open /dev/stdout and /dev/stderr, which is a check on the inode. */
		if (a->user.change && fchown(fds[1], a->user.uid, a->user.gid) < 0)
			goto fail;
		output_arm(&o->pipe[i]);
		if (o->pipe[i].fd < 0)
			goto fail;
	}
	return o;
fail:
	saved = errno;
	close_fd(child_out);
	close_fd(child_err);
	output_free(o);
	errno = saved;
	return NULL;
}

void output_begin(struct output *o, struct stream *sink, const struct output_limit *limit)
{
	unsigned number = ++o->agent->nexecs;
	uint64_t head = limit->over ? limit->bytes : limit->bytes / 2;

	output_release(o);
	capture_begin(&o->pipe[0].capture, o->agent, number, "stdout", head, limit->bytes - head);
	capture_begin(&o->pipe[1].capture, o->agent, number, "stderr", head, limit->bytes - head);
	o->limit = *limit;
	o->sink = sink;
	output_resume(o);
}

void output_keep(struct output *o, struct keep_log logs[2], output_logged_fn *fn, void *arg)
{
	output_release(o);
	for (int i = 0; i < 2; i++)
		o->pipe[i].log = &logs[i];
	o->logged = fn;
	o->logged_arg = arg;
	output_resume(o);
}

void output_discard(struct output *o)
{
	output_release(o);
	output_resume(o);
}

void output_report(struct output *o, json_t *exit, uint64_t more)
{
	static const char *const names[] = {"stdout", "stderr"};
	json_t *log = json_object();
	uint64_t dropped = more;
	bool whole = true;

	for (int i = 0; i < 2; i++) {
		struct capture *c = &o->pipe[i].capture;
		uint64_t lost = c->agent ? capture_dropped(c) : 0;
		const char *path = lost ? capture_log(c) : NULL;

		dropped += lost;
		whole = whole && (lost == 0 || capture_log_whole(c));
		if (path)
			json_object_set_new(log, names[i], json_string(path));
		capture_end(c, path != NULL);
	}
	json_object_set_new(exit, "truncated", json_boolean(dropped > 0));
	json_object_set_new(exit, "bytes_dropped", json_integer((json_int_t)dropped));
	if (!whole)
		json_object_set_new(exit, "log_truncated", json_true());
	if (json_object_size(log) > 0)
		json_object_set(exit, "log", log);
	json_decref(log);
}

void output_set_lossy(struct output *o)
{
	o->lossy = true;
	output_resume(o);
}

static size_t output_waiting(const struct output_pipe *p)
{
	int n = 0;

	/* What was written to a terminal may still be on its way through the kernel, and uncounted;
	   a read that finds nothing has waited for it. */
	if (p->terminal)
		return p->fd >= 0 ? OUTPUT_PIPE_SIZE : 0;
	return p->fd >= 0 && ioctl(p->fd, FIONREAD, &n) == 0 && n > 0 ? (size_t)n : 0;
}

bool output_is_over(const struct output *o)
{
	for (int i = 0; i < 2 && o->limit.over; i++) {
		const struct output_pipe *p = &o->pipe[i];

		if (p->capture.total + output_waiting(p) > o->limit.bytes)
			return true;
	}
	return false;
}

void output_skip(struct output *o)
{
	for (int i = 0; i < 2; i++) {
		size_t left = output_waiting(&o->pipe[i]);

		while (left) {
			size_t max = sizeof(o->agent->scratch);
			ssize_t n = io_read_some(o->pipe[i].fd, o->agent->scratch,
						 left < max ? left : max);

			if (n <= 0)
				break;
			left -= (size_t)n;
		}
	}
}

void output_drain(struct output *o, output_drained_fn *fn, void *arg)
{
	o->drained = fn;
	o->arg = arg;
	for (int i = 0; i < 2; i++)
		o->pipe[i].owed = output_waiting(&o->pipe[i]);
	if (output_drain_step(o))
		output_drain_done(o);
	else
		output_disarm(o);
}

void output_end(struct output *o, output_drained_fn *fn, void *arg)
{
	o->ending = true;
	o->finished = false;
	output_drain(o, fn, arg);
}

void output_hurry(struct output *o)
{
	o->hurry = o->lossy = true;
	output_resume(o);
}

void output_resume(struct output *o)
{
	if (o->drained) {
		if (output_drain_step(o))
			output_drain_done(o);
		return;
	}
	for (int i = 0; i < 2; i++)
		output_arm(&o->pipe[i]);
}

void output_abandon(struct output *o)
{
	struct agent *a;

	if (!o)
		return;
	a = o->agent;
	o->drained = NULL;
	output_release(o);
	if (a->nleftovers >= OUTPUT_LEFTOVERS_MAX)
		output_free(list_entry(a->leftovers.next, struct output, link));
	list_add_tail(&a->leftovers, &o->link);
	a->nleftovers++;
	for (int i = 0; i < 2; i++)
		output_arm(&o->pipe[i]);
	if (o->pipe[0].fd < 0 && o->pipe[1].fd < 0)
		output_free(o);
}
