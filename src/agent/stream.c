/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Conversation state machine. States: idle (no job, no body to come), body
 * (DATA* END expected, with a job or, after an early ERROR, without one: then
 * they are discarded), running (job, no body), closing (refused). Everything
 * the peer can do wrong ends in stream_refuse(); nothing it can do makes the
 * buffers grow beyond their bounds.
 */
#include "agent/stream.h"
#include "agent/agent.h"
#include "agent/request.h"
#include "lib/io.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* Above this many queued bytes output pauses; below half of it, it goes on. */
#define STREAM_HIGH ((size_t)128 * 1024)
/* One output frame may still come on top, and then answers (ERROR, EXIT, PONG...). */
#define STREAM_ANSWERS (STREAM_HIGH + FRAME_HEADER_SIZE + FRAME_PAYLOAD_MAX)
/* Above this no more frames are taken from the peer: it asks and does not read. */
#define STREAM_IN_PAUSE (STREAM_ANSWERS + 4096u)
/* The largest batch of answers that one more frame can cause fits behind it. */
#define STREAM_MAX (STREAM_IN_PAUSE + FRAME_HEADER_SIZE + FRAME_PAYLOAD_MAX)

/* A request has three frames, or one. With more than that in one look it is not left alone. */
#define STREAM_LEFT_FRAMES 4
#define STREAM_PING_MAX    64
#define STREAM_LINGER_NS   (2 * 1000000000ull)

static void stream_on_event(struct loop_src *src, uint32_t events);

static void stream_on_linger(struct loop_timer *t)
{
	stream_close(t->arg);
}

struct stream *stream_new(struct server *srv, int fd)
{
	_cleanup_fd int owned = fd;
	struct stream *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	list_init(&s->link);
	s->fd = fd;
	s->agent = srv->agent;
	s->server = srv;
	s->src = (struct loop_src){.fd = -1, .fn = stream_on_event, .arg = s};
	s->linger = (struct loop_timer){.fn = stream_on_linger, .arg = s};
	s->events = EPOLLIN | EPOLLRDHUP | EPOLLET;
	frame_reader_init(&s->in);
	frame_writer_init(&s->out, STREAM_MAX);
	if (loop_add(&s->agent->loop, &s->src, fd, s->events) < 0) {
		free(s);
		return NULL;
	}
	take_fd(&owned);
	server_stream_opened(srv, s);
	return s;
}

static void stream_drop_job(struct stream *s, bool detach)
{
	const struct stream_ops *ops = s->ops;
	void *job = s->job;

	s->ops = NULL;
	s->job = NULL;
	if (!ops)
		return;
	if (detach && ops->detach)
		ops->detach(job);
	else
		ops->gone(job);
}

static void stream_end(struct stream *s, bool detach)
{
	if (s->closed)
		return;
	s->closed = true;
	stream_drop_job(s, detach);
	loop_timer_cancel(&s->linger);
	loop_del(&s->src);
	close_fd(&s->fd);
	frame_reader_free(&s->in);
	frame_writer_free(&s->out);
	if (s->resting)
		s->server->nresting--;
	server_stream_closed(s->server, s);
	loop_defer_free(&s->agent->loop, s);
}

void stream_close(struct stream *s)
{
	stream_end(s, false);
}

void stream_abandon(struct stream *s)
{
	stream_end(s, true);
}

void stream_rest(struct stream *s)
{
	if (s->closed || s->resting)
		return;
	s->resting = true;
	s->server->nresting++;
	loop_del(&s->src);
}

void stream_wake(struct stream *s)
{
	if (s->closed || !s->resting)
		return;
	s->resting = false;
	s->server->nresting--;
	/* Writable is reported at once, and then everything is caught up on. */
	s->events = EPOLLIN | EPOLLOUT | EPOLLRDHUP;
	if (loop_add(&s->agent->loop, &s->src, s->fd, s->events) < 0)
		stream_close(s);
}

static void stream_update_events(struct stream *s)
{
	uint32_t events = EPOLLRDHUP;

	if (!s->in_paused || s->closing)
		events |= EPOLLIN;
	if (s->want_room || s->in_paused || frame_writer_pending(&s->out))
		events |= EPOLLOUT;
	else
		events |= EPOLLET; /* what is left in the socket is there all the time */
	if (events != s->events && loop_mod(&s->src, events) == 0)
		s->events = events;
}

void stream_flush(struct stream *s)
{
	if (s->closed || s->resting)
		return;
	if (!s->broken && frame_writer_flush(&s->out, s->fd) < 0)
		s->broken = true;
	/* A broken socket is reported by the loop as hang-up; what waits is of no use. */
	if (s->broken || (!s->ops && !frame_writer_pending(&s->out)))
		frame_writer_free(&s->out);
	if (s->closing && !frame_writer_pending(&s->out))
		shutdown(s->fd, SHUT_WR);
	stream_update_events(s);
}

size_t stream_room(struct stream *s)
{
	if (buf_len(&s->out.out) >= STREAM_HIGH && !(s->events & EPOLLOUT))
		stream_flush(s);
	if (s->broken || (!s->resting && buf_len(&s->out.out) < STREAM_HIGH))
		return FRAME_PAYLOAD_MAX;
	/* Remembered: what fills the buffer now may be sent by a flush on another occasion. */
	s->want_room = true;
	return 0;
}

void stream_yield(struct stream *s)
{
	s->want_room = true;
	stream_flush(s);
}

void stream_put(struct stream *s, uint8_t type, const void *payload, size_t len)
{
	if (s->closed || s->broken)
		return;
	/* Cannot be for want of room (see the bounds above), so memory is out: give the stream up.
	 */
	if (frame_put(&s->out, type, payload, len) < 0) {
		s->broken = true;
		shutdown(s->fd, SHUT_RDWR);
	}
}

void stream_put_json(struct stream *s, uint8_t type, json_t *obj)
{
	char *text = json_text(obj);

	json_decref(obj);
	if (text) {
		stream_put(s, type, text, strlen(text));
	} else if (!s->closed) {
		s->broken = true;
		shutdown(s->fd, SHUT_RDWR);
	}
	free(text);
}

void stream_set_job(struct stream *s, const struct stream_ops *ops, void *job)
{
	s->ops = ops;
	s->job = job;
}

void stream_done(struct stream *s)
{
	s->ops = NULL;
	s->job = NULL;
	s->want_room = false;
	stream_flush(s);
}

void stream_final(struct stream *s, uint8_t type, json_t *obj)
{
	stream_put_json(s, type, obj);
	stream_done(s);
}

json_t *stream_text(const char *text)
{
	json_t *str = json_string(text);
	char *copy;

	if (str)
		return str;
	copy = strdup(text);
	for (char *p = copy; p && *p; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	str = copy ? json_string(copy) : NULL;
	free(copy);
	return str;
}

static json_t *stream_error_object(const struct err *err)
{
	return json_pack("{s:s, s:o}", "code", agent_error_word(err->num), "message",
			 stream_text(err->msg));
}

void stream_fail(struct stream *s, const struct err *err)
{
	stream_final(s, FRAME_ERROR, stream_error_object(err));
}

void stream_error(struct stream *s, int num, const char *fmt, ...)
{
	struct err err = {.num = num};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err.msg, sizeof(err.msg), fmt, ap);
	va_end(ap);
	stream_fail(s, &err);
}

void stream_refuse(struct stream *s, const struct err *err)
{
	if (s->closing || s->closed)
		return;
	stream_drop_job(s, false);
	s->want_room = false;
	s->closing = true;
	s->left = 0; /* it is read and dropped with the rest */
	stream_put_json(s, FRAME_ERROR, stream_error_object(err));
	/* The peer may take its time to read the answer, but not for ever. */
	loop_timer_set(&s->agent->loop, &s->linger, STREAM_LINGER_NS);
	stream_flush(s);
}

static void stream_break(struct stream *s, const char *msg)
{
	struct err err;

	err_text(&err, EPROTO, "%s", msg);
	stream_refuse(s, &err);
}

static void stream_on_ping(struct stream *s, const struct frame *f)
{
	if (f->len > STREAM_PING_MAX)
		stream_break(s, "a PING carries at most 64 bytes");
	else
		stream_put(s, FRAME_PONG, f->payload, f->len);
}

static void stream_on_data(struct stream *s, const struct frame *f)
{
	if (!s->body)
		stream_break(s, "DATA outside of a request");
	else if (s->ops)
		s->ops->data(s, s->job, f->payload, f->len);
}

static void stream_on_end(struct stream *s, const struct frame *f)
{
	if (!s->body || f->len) {
		stream_break(s, s->body ? "END carries no bytes" : "END outside of a request");
		return;
	}
	s->body = false;
	if (s->ops)
		s->ops->end(s, s->job);
}

static void stream_on_input_frame(struct stream *s, const struct frame *f)
{
	int rc = -EPROTO;

	/* On an idle stream it has crossed the final frame on its way: no error. */
	if (!s->ops && !s->body)
		return;
	if (s->ops && s->ops->input && !s->body) {
		if (f->type == FRAME_STDIN)
			rc = s->ops->input(s, s->job, f->payload, f->len);
		else if (f->len == 0)
			rc = s->ops->input_end(s, s->job);
	}
	if (rc < 0)
		stream_break(s, rc == -EPROTO ? "STDIN that is not expected, or too much of it"
					      : "out of memory for STDIN");
}

static void stream_on_resize(struct stream *s, const struct frame *f)
{
	int rc = -EPROTO;

	/* As for STDIN. */
	if (!s->ops && !s->body)
		return;
	if (s->ops && s->ops->resize && !s->body)
		rc = s->ops->resize(s, s->job, f->payload, f->len);
	if (rc < 0)
		stream_break(s, "RESIZE that is not expected, or not valid");
}

static void stream_on_frame(struct stream *s, const struct frame *f)
{
	switch (f->type) {
	case FRAME_PING:
		stream_on_ping(s, f);
		break;
	case FRAME_CANCEL:
		/* With nothing to cancel it has crossed the final frame on its way: no error. */
		if (s->ops && s->ops->cancel)
			s->ops->cancel(s, s->job);
		break;
	case FRAME_INTERRUPT:
		if (s->ops && s->ops->interrupt)
			s->ops->interrupt(s, s->job);
		break;
	case FRAME_STDIN:
	case FRAME_STDIN_END:
		stream_on_input_frame(s, f);
		break;
	case FRAME_RESIZE:
		stream_on_resize(s, f);
		break;
	case FRAME_DATA_IN:
		stream_on_data(s, f);
		break;
	case FRAME_END_IN:
		stream_on_end(s, f);
		break;
	default:
		if (s->ops || s->body)
			stream_break(s, "a request while another one is running on this stream");
		else
			request_begin(s, f);
		break;
	}
}

/* Handles the frames that are complete, as long as their answers have room: how many. */
static unsigned stream_take_frames(struct stream *s)
{
	unsigned taken = 0;
	struct frame f;

	while (!s->closed && !s->closing) {
		int rc;

		if (buf_len(&s->out.out) > STREAM_IN_PAUSE)
			stream_flush(s);
		s->in_paused = buf_len(&s->out.out) > STREAM_IN_PAUSE;
		rc = s->in_paused ? 0 : frame_reader_next(&s->in, &f);
		if (rc == 0)
			break;
		taken++;
		if (rc < 0)
			stream_break(s, rc == -EMSGSIZE
						? "a frame carries at most 65536 bytes"
						: "a frame header with non-zero reserved bytes");
		else
			stream_on_frame(s, &f);
	}
	return taken;
}

/* There may be more to read, or its end: the edge is asked for again. */
static void stream_come_again(struct stream *s)
{
	if (s->src.loop && loop_mod(&s->src, s->events) < 0)
		s->broken = true;
}

/* Takes out of the socket what was left there: 0 or -errno. */
static int stream_take_left(struct stream *s)
{
	while (s->left) {
		size_t max = sizeof(s->agent->scratch);
		ssize_t n = io_recv_some(s->fd, s->agent->scratch, s->left < max ? s->left : max);

		if (n <= 0)
			return n < 0 ? (int)n : -ECONNRESET;
		s->left -= (size_t)n;
	}
	return 0;
}

/*
 * Reads once, as frame_reader_fill(). Whenever a read leaves nothing in a socket, Linux' vsock
 * tells the host of the room: a packet and an exit of the VM that nobody waits for. A short request
 * is therefore left there until the next one has come behind it, and the answer tells of the room
 * as well. Only when it is whole, and nothing else: a peer that is not done may have room for no
 * more.
 */
static ssize_t stream_fill(struct stream *s)
{
	int rc = stream_take_left(s);
	ssize_t n;

	if (rc < 0)
		return rc == -EAGAIN ? -EIO : rc;
	if (s->ops || s->body || buf_len(&s->in.in)) {
		n = frame_reader_fill(&s->in, s->fd);
		if (n > 0)
			stream_come_again(s);
		return n;
	}
	n = frame_reader_look(&s->in, s->fd);
	if (n <= 0)
		return n;
	s->left = (size_t)n;
	if (n == FRAME_LOOK) {
		rc = stream_take_left(s);
		stream_come_again(s);
	}
	return rc < 0 ? rc : n;
}

static void stream_on_input(struct stream *s)
{
	ssize_t n;

	if (s->closing) {
		n = io_recv_some(s->fd, s->agent->scratch, sizeof(s->agent->scratch));
		if (n == 0 || (n < 0 && n != -EAGAIN))
			stream_close(s);
		else if (n > 0)
			stream_come_again(s);
		return;
	}
	n = stream_fill(s);
	if (n == -EAGAIN)
		return;
	if (n <= 0) {
		stream_close(s);
		return;
	}
	if (stream_take_frames(s) > STREAM_LEFT_FRAMES || buf_len(&s->in.in))
		n = stream_take_left(s);
	if (n < 0)
		stream_close(s);
}

static void stream_on_event(struct loop_src *src, uint32_t events)
{
	struct stream *s = src->arg;

	if (events & EPOLLIN) {
		stream_on_input(s);
		if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
			stream_come_again(s);
	} else if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) {
		stream_close(s);
	}
	if (s->closed)
		return;
	if (events & EPOLLOUT) {
		stream_flush(s);
		if (s->in_paused)
			stream_take_frames(s);
		if (!s->closed && s->ops && s->ops->room && s->want_room &&
		    buf_len(&s->out.out) <= STREAM_HIGH / 2) {
			s->want_room = false;
			s->ops->room(s, s->job);
		}
	}
	stream_flush(s);
}
