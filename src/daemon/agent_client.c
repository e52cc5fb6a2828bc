/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams to an agent. A stream that was closed inside a callback stays valid
 * memory until the loop's batch is over (loop_defer_free), with fd == -1.
 */
#define _GNU_SOURCE
#include "daemon/agent_client.h"
#include "daemon/limits.h"
#include "daemon/vmm_client.h"
#include "lib/io.h"
#include "lib/log.h"
#include "proto/guest.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* Kept free in the output queue for END, CANCEL and one PING. */
#define CONTROL_RESERVE 256u
/* For a PING, a FREEZE, a THAW. */
#define FIRST_ROOM 64u
/* So much is held back by agent_cork(). */
#define CORK_MAX 16384u

static int agent_take(struct agent_stream *s, struct frame *f);

static void agent_new_turn(struct agent *a)
{
	a->round = a->loop->rounds;
	a->turn_frames = AGENT_TURN_FRAMES;
	a->turn_bytes = AGENT_TURN_BYTES;
}

/* It goes on behind those that wait already, in the next round of the loop. */
static void agent_wait(struct agent_stream *s)
{
	struct agent *a = s->agent;

	if (!list_empty(&s->wait) || a->last)
		return;
	list_add_tail(&a->waiting, &s->wait);
	if (!loop_timer_armed(&a->turn))
		loop_timer_set(a->loop, &a->turn, 0);
}

/* Whether there is something left of the turn. */
static bool agent_turn_left(struct agent *a)
{
	if (!a->last && a->round != a->loop->rounds)
		agent_new_turn(a);
	return a->turn_frames > 0 && a->turn_bytes > 0;
}

/* Whether the next frame may be this stream's: nobody gets ahead of those that wait. */
static bool agent_has_turn(struct agent_stream *s)
{
	struct agent *a = s->agent;

	if (a->last)
		return agent_turn_left(a) && s->last_bytes > 0;
	return (a->serving == s || list_empty(&a->waiting)) && agent_turn_left(a);
}

/* Those that wait now, each once, as far as the turn goes. */
static void agent_on_turn(struct loop_timer *t)
{
	struct agent *a = t->arg;
	unsigned int n = 0;

	list_for_each (s, &a->waiting, struct agent_stream, wait)
		n++;
	for (; n && !list_empty(&a->waiting) && agent_turn_left(a); n--) {
		struct agent_stream *s = list_entry(a->waiting.next, struct agent_stream, wait);

		list_del(&s->wait);
		a->serving = s;
		s->fn(s);
		a->serving = NULL;
	}
	if (!list_empty(&a->waiting) && !loop_timer_armed(t))
		loop_timer_set(a->loop, t, 0);
}

void agent_init(struct agent *a, struct loop *loop, struct vmm *vmm)
{
	*a = (struct agent){.loop = loop, .vmm = vmm};
	list_init(&a->streams);
	list_init(&a->idle);
	list_init(&a->waiting);
	a->turn = (struct loop_timer){.fn = agent_on_turn, .arg = a};
	agent_new_turn(a);
}

void agent_free(struct agent *a)
{
	list_for_each_safe (s, &a->idle, struct agent_stream, link)
		agent_close(s);
	list_for_each_safe (s, &a->streams, struct agent_stream, link)
		agent_close(s);
	loop_timer_cancel(&a->turn);
}

/* Asks the loop for what the stream waits for. */
static void agent_arm(struct agent_stream *s)
{
	uint32_t ev = (s->drained ? EPOLLIN : 0) |
		      (!s->held && frame_writer_pending(&s->out) ? EPOLLOUT : 0);

	if (s->eof)
		return;
	if (s->src.loop)
		loop_mod(&s->src, ev);
	else if (s->drained && loop_add(s->agent->loop, &s->src, s->fd, ev) < 0)
		s->error = -EIO;
}

/* Sends what waits. After an error the rest is dropped: the reason is to be read, not written. */
static void agent_flush(struct agent_stream *s)
{
	if (s->held)
		return;
	if (!s->mute && frame_writer_flush(&s->out, s->fd) < 0) {
		s->mute = true;
		frame_writer_free(&s->out);
	}
}

void agent_last_turn(struct agent *a)
{
	loop_timer_cancel(&a->turn);
	a->last = true;
	a->turn_frames = AGENT_LAST_FRAMES;
	a->turn_bytes = AGENT_LAST_BYTES;
	list_for_each (s, &a->streams, struct agent_stream, link) {
		list_del(&s->wait);
		s->last_bytes = AGENT_LAST_OF_ONE;
	}
}

void agent_spend(struct agent_stream *s, size_t bytes)
{
	s->agent->turn_bytes -= (ssize_t)bytes;
	s->last_bytes -= (ssize_t)bytes;
}

static void agent_on_event(struct loop_src *src, uint32_t events)
{
	struct agent_stream *s = src->arg;

	if (!s->fn) {
		/* Idle: whatever comes is not an answer to anything. */
		agent_close(s);
		return;
	}
	if (events & EPOLLOUT)
		agent_flush(s);
	s->drained = false;
	if (agent_has_turn(s))
		s->fn(s);
	else
		agent_wait(s);
	if (s->fd < 0 || !s->fn || s->eof)
		return;
	/* A hang-up cannot be masked; an owner that does not read now comes back for the rest. */
	if ((events & (EPOLLHUP | EPOLLERR)) && !s->drained)
		loop_del(&s->src);
	else
		agent_arm(s);
}

static void agent_on_grace(struct loop_timer *t)
{
	struct agent_stream *s = t->arg;

	s->error = -ECONNRESET;
	s->fn(s);
}

static struct agent_stream *agent_connect(struct agent *a, unsigned int limit, struct err *err)
{
	struct agent_stream *s;
	int sv[2];
	int64_t id;

	if (a->nstreams >= limit) {
		err_text(err, EBUSY, "too many requests are under way in this sandbox");
		return NULL;
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0) {
		err_set(err, errno, "cannot make a stream");
		return NULL;
	}
	id = vmm_connect(a->vmm, GUEST_AGENT_PORT, sv[1]);
	close(sv[1]);
	s = id < 0 ? NULL : calloc(1, sizeof(*s));
	if (!s) {
		close(sv[0]);
		err_set(err, id < 0 ? (int)-id : ENOMEM, "cannot connect to the guest");
		return NULL;
	}
	s->agent = a;
	s->id = (uint32_t)id;
	s->fd = sv[0];
	s->src = (struct loop_src){.fd = -1, .fn = agent_on_event, .arg = s};
	s->grace = (struct loop_timer){.fn = agent_on_grace, .arg = s};
	frame_reader_init(&s->in);
	frame_writer_init(&s->out, STREAM_OUT_MAX);
	list_init(&s->link);
	list_init(&s->wait);
	a->nstreams++;
	if (loop_add(a->loop, &s->src, s->fd, EPOLLIN) < 0) {
		agent_close(s);
		err_text(err, EIO, "cannot watch a stream");
		return NULL;
	}
	return s;
}

static struct agent_stream *agent_begin(struct agent_stream *s, agent_stream_fn *fn, void *user)
{
	s->fn = fn;
	s->user = user;
	s->drained = true;
	s->pings = 0;
	list_add_tail(&s->agent->streams, &s->link);
	return s;
}

struct agent_stream *agent_open(struct agent *a, agent_stream_fn *fn, void *user, struct err *err)
{
	struct agent_stream *s;

	if (!list_empty(&a->idle)) {
		s = list_entry(a->idle.next, struct agent_stream, link);
		a->nidle--;
		list_del(&s->link);
	} else {
		s = agent_connect(a, LIMIT_STREAMS, err);
		if (!s)
			return NULL;
	}
	s->held = a->hold;
	return agent_begin(s, fn, user);
}

struct agent_stream *agent_open_new(struct agent *a, agent_stream_fn *fn, void *user,
				    struct err *err)
{
	struct agent_stream *s = agent_connect(a, LIMIT_STREAMS + LIMIT_OWN_STREAMS, err);

	/* Room for the first request: a want of memory is told here, and not taken for the guest's
	 * silence later. */
	if (!s || buf_reserve(&s->out.out, FIRST_ROOM))
		return s ? agent_begin(s, fn, user) : NULL;
	err_text(err, ENOMEM, "out of memory");
	agent_close(agent_begin(s, fn, user));
	return NULL;
}

void agent_hold(struct agent *a)
{
	if (!a->hold)
		a->hold_at = io_now_ns();
	a->hold = true;
}

uint64_t agent_held_ns(const struct agent *a)
{
	return a->hold_ns + (a->hold ? io_now_ns() - a->hold_at : 0);
}

void agent_unhold(struct agent *a)
{
	a->hold_ns = agent_held_ns(a);
	a->hold = false;
	list_for_each (s, &a->streams, struct agent_stream, link) {
		if (!s->held)
			continue;
		s->held = false;
		agent_flush(s);
		/* Its owner comes by EPOLLOUT: it may have more to send. */
		if (s->src.loop)
			loop_mod(&s->src, EPOLLIN | EPOLLOUT);
	}
}

void agent_release(struct agent_stream *s)
{
	struct agent *a = s->agent;
	struct frame f;

	list_del(&s->wait);
	/* Bytes behind the final frame, or ours still unsent: the two sides disagree. An answer to
	 * a PING that is on its way would meet the next conversation. The look for more may find
	 * the stream's end, which would be told when there is no owner any more. */
	if (s->error || s->mute || s->held || s->pings || a->nidle >= LIMIT_IDLE_STREAMS ||
	    frame_writer_pending(&s->out) || agent_take(s, &f) != 0 || s->eof ||
	    buf_len(&s->in.in)) {
		agent_close(s);
		return;
	}
	frame_reader_free(&s->in);
	frame_reader_init(&s->in);
	frame_writer_free(&s->out);
	s->fn = NULL;
	s->user = NULL;
	list_del(&s->link);
	list_add_head(&a->idle, &s->link);
	a->nidle++;
}

void agent_close(struct agent_stream *s)
{
	struct agent *a;

	if (!s || s->fd < 0)
		return;
	a = s->agent;
	if (!s->fn && !list_empty(&s->link))
		a->nidle--;
	list_del(&s->link);
	loop_del(&s->src);
	list_del(&s->wait);
	if (a->serving == s)
		a->serving = NULL;
	loop_timer_cancel(&s->grace);
	close_fd(&s->fd);
	frame_reader_free(&s->in);
	frame_writer_free(&s->out);
	a->nstreams--;
	loop_defer_free(a->loop, s);
}

size_t agent_room(const struct agent_stream *s)
{
	size_t room = buf_room(&s->out.out);

	if (s->error || room <= CONTROL_RESERVE + FRAME_HEADER_SIZE)
		return 0;
	room -= CONTROL_RESERVE + FRAME_HEADER_SIZE;
	return room < FRAME_PAYLOAD_MAX ? room : FRAME_PAYLOAD_MAX;
}

/* Sends what waits; the rest when the other side takes it. */
static void agent_push(struct agent_stream *s)
{
	agent_flush(s);
	if (frame_writer_pending(&s->out))
		agent_arm(s);
}

void agent_send(struct agent_stream *s, uint8_t type, const void *payload, size_t len)
{
	int rc;

	if (s->error || s->mute)
		return;
	rc = frame_put(&s->out, type, payload, len);
	if (rc < 0) {
		/* No memory, or more than agent_room(). Its owner hears of it: no answer will come.
		 */
		s->error = rc;
		agent_wait(s);
		return;
	}
	s->pings += type == FRAME_PING;
	if (!s->corked || buf_len(&s->out.out) > CORK_MAX)
		agent_push(s);
}

void agent_cork(struct agent_stream *s)
{
	s->corked = true;
}

void agent_uncork(struct agent_stream *s)
{
	s->corked = false;
	if (!s->error && frame_writer_pending(&s->out))
		agent_push(s);
}

/* What only a flood would consist of: 0 or -EPROTO. */
static int agent_check(struct agent_stream *s, const struct frame *f)
{
	switch (f->type) {
	case FRAME_STDOUT:
	case FRAME_STDERR:
	case FRAME_DATA_OUT:
		return f->len ? 0 : -EPROTO;
	case FRAME_PONG:
		if (!s->pings)
			return -EPROTO;
		s->pings--;
		return 0;
	default:
		return 0;
	}
}

/* A whole frame was read: 1, or -EPROTO. */
static int agent_took(struct agent_stream *s, const struct frame *f)
{
	s->agent->turn_frames--;
	agent_spend(s, f->len);
	s->error = agent_check(s, f);
	return s->error ? s->error : 1;
}

/* agent_next(), whosever turn it is. */
static int agent_take(struct agent_stream *s, struct frame *f)
{
	if (s->error)
		return s->error;
	for (;;) {
		int rc = frame_reader_next(&s->in, f);
		ssize_t n;

		if (rc > 0)
			return agent_took(s, f);
		if (rc < 0) {
			s->error = rc;
			return rc;
		}
		n = s->eof ? -EAGAIN : frame_reader_fill(&s->in, s->fd);
		if (n == -EAGAIN) {
			s->drained = true;
			agent_arm(s);
			return s->error;
		}
		if (n == 0 || n == -ECONNRESET) {
			/* Closed, with or without having read what we sent. */
			s->eof = true;
			loop_del(&s->src);
			loop_timer_set(s->agent->loop, &s->grace, AGENT_EOF_NS);
		} else if (n < 0) {
			s->error = (int)n;
			return s->error;
		}
	}
}

int agent_next(struct agent_stream *s, struct frame *f)
{
	if (s->error || agent_has_turn(s))
		return agent_take(s, f);
	agent_wait(s);
	return 0;
}

void agent_refused(struct agent *a, uint32_t id, int errnum)
{
	list_for_each_safe (s, &a->streams, struct agent_stream, link) {
		if (s->id != id)
			continue;
		if (!s->error) {
			s->error = -errnum;
			loop_timer_cancel(&s->grace);
			s->fn(s);
		}
		return;
	}
}

const char *agent_error_text(int error)
{
	switch (error) {
	case -ECONNRESET:
	case -EPIPE:
		return "the guest's agent closed the connection";
	case -EPROTO:
	case -EMSGSIZE:
		return "the guest's agent broke the protocol";
	case -ECONNREFUSED:
		return "the guest's agent does not accept connections";
	default:
		return strerror(-error);
	}
}
