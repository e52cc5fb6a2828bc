/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control socket of the REPL: what it says, in order with what it writes.
 *
 * A frame (EVENT, EXIT) stands behind the output that was in the pipes when it
 * was read: it is held until that has been delivered. While a frame is held the
 * control socket is not read, which also is the back-pressure for events.
 */
#include "agent/repl.h"
#include "agent/agent.h"
#include "agent/cell.h"
#include "agent/output.h"
#include "agent/warm.h"

#include <errno.h>

#define REPL_CTL_OUT_MAX ((size_t)2 * (FRAME_HEADER_SIZE + FRAME_PAYLOAD_MAX))
/* A REPL without its control socket cannot be used; it gets this long to exit by itself. */
#define REPL_EOF_GRACE_NS 1000000000ull
/* A REPL that is between cells answers a PING at once, however busy the machine is. */
#define REPL_SETTLE_NS 10000000000ull
/* Reads of the control socket after the end: more than the socket can hold is not awaited. */
#define REPL_LATE_READS 16
/* An event in pieces, all together. */
#define REPL_EVENT_MAX ((size_t)8 << 20)

void repl_update_ctl(struct repl *r)
{
	uint32_t want = 0;

	if (r->ctl_fd < 0 || r->exited || r->taking)
		return; /* while frames are taken things change often: once at the end is enough */
	if (!r->ctl_eof && !r->fault) {
		/* An error means that the other end is gone, which reading will say. */
		if (frame_writer_flush(&r->ctl_out, r->ctl_fd) > 0 || cell_has_more(r))
			want |= EPOLLOUT;
		if (r->held == HELD_NOTHING)
			want |= EPOLLIN;
	}
	/* Out of the loop rather than without events: a hang-up would be reported without end. */
	if (!want)
		loop_del(&r->ctl);
	else if (r->ctl.loop)
		loop_mod(&r->ctl, want);
	else if (loop_add(&r->agent->loop, &r->ctl, r->ctl_fd, want) < 0)
		repl_kill(r, "its control channel could not be watched");
}

static void repl_on_timer(void *arg)
{
	struct repl *r = arg;

	if (r->ctl_eof)
		repl_kill(r, "it closed its control channel");
	else if (r->state == REPL_SETTLING)
		repl_kill(r, "it did not answer after an interrupt");
}

static void repl_on_output_delivered(struct output *o)
{
	repl_resume(o->arg);
}

/* Pieces of an event follow each other, and are not too many: NULL, or what is wrong. */
static const char *repl_check_pieces(struct repl *r, const struct frame *f)
{
	bool piece = f->type == FRAME_EVENT_PART;

	if (!piece && f->type != FRAME_EVENT)
		return r->event_bytes ? "it sent a frame in the middle of an event" : NULL;
	if (r->event_bytes + f->len > REPL_EVENT_MAX)
		return "it sent an event that is too long";
	r->event_bytes = piece && f->len ? r->event_bytes + f->len : 0;
	return NULL;
}

/* Takes one frame. Frames that mean something in this state only are a fault in any other. */
static void repl_on_frame(struct repl *r, const struct frame *f)
{
	const char *fault;

	/* The answer to a renewal comes at any moment: a signal handler gives it. */
	if (renewal_take_frame(&r->agent->renewal, r, f))
		return;
	fault = repl_check_pieces(r, f);
	if (fault) {
		repl_kill(r, fault);
		return;
	}
	if (f->type == FRAME_READY && r->state == REPL_STARTING) {
		repl_note_quiet(r, f);
		repl_begin_next(r);
	} else if (f->type == FRAME_PONG && r->state == REPL_SETTLING) {
		alarm_cancel(&r->timer);
		repl_begin_next(r);
	} else if (r->state == REPL_WARMING && (f->type == FRAME_OK || f->type == FRAME_ERROR)) {
		repl_note_quiet(r, f);
		warm_done(r, f);
		repl_begin_next(r);
	} else if (f->type == FRAME_EVENT || f->type == FRAME_EVENT_PART ||
		   (f->type == FRAME_EXIT && r->cell)) {
		if (!r->cell)
			return; /* of a thread that goes on between cells */
		r->held = HELD_OUTPUT;
		r->held_frame = *f;
		output_drain(r->output, repl_on_output_delivered, r);
	} else {
		repl_kill(r, "it sent a frame that was not its turn");
	}
}

void repl_begin_next(struct repl *r)
{
	r->state = REPL_READY;
	if (!warm_begin(r))
		cell_begin_next(r);
	repl_update_ctl(r);
}

void repl_settle(struct repl *r)
{
	r->state = REPL_SETTLING;
	if (frame_put(&r->ctl_out, FRAME_PING, NULL, 0) < 0)
		repl_kill(r, "its control channel has no room");
	alarm_set(&r->timer, REPL_SETTLE_NS);
	repl_update_ctl(r);
}

/* One read of the control socket: false when nothing came (now, or ever again). */
static bool repl_read_ctl(struct repl *r)
{
	ssize_t n;

	if (r->ctl_eof || (r->exited && r->late_reads++ >= REPL_LATE_READS))
		return false;
	n = frame_reader_fill(&r->ctl_in, r->ctl_fd);
	if (n > 0)
		return true;
	if (n != -EAGAIN) {
		r->ctl_eof = true;
		if (!r->exited)
			alarm_set(&r->timer, REPL_EOF_GRACE_NS);
	}
	return false;
}

void repl_take_frames(struct repl *r)
{
	struct frame f;

	r->taking = true;
	while (r->held == HELD_NOTHING && !r->fault) {
		int rc = frame_reader_next(&r->ctl_in, &f);

		if (rc < 0)
			repl_kill(r, "it sent a broken frame");
		else if (rc > 0)
			repl_on_frame(r, &f);
		else if (!r->exited || !repl_read_ctl(r))
			break;
	}
	r->taking = false;
	if (r->exited && (r->held == HELD_NOTHING || (r->fault && r->held != HELD_END)))
		repl_bury(r);
	else
		repl_update_ctl(r);
}

void repl_resume(struct repl *r)
{
	if (r->held != HELD_OUTPUT && r->held != HELD_ROOM)
		return;
	switch (cell_take_frame(r, &r->held_frame)) {
	case CELL_NO_ROOM:
		r->held = HELD_ROOM;
		break;
	case CELL_TOOK:
		repl_go_on(r);
		break;
	case CELL_ENDS:
		break;
	}
}

void repl_go_on(struct repl *r)
{
	r->held = HELD_NOTHING;
	output_resume(r->output);
	if (!r->taking)
		repl_take_frames(r);
}

static void repl_on_ctl(struct loop_src *src, uint32_t events)
{
	struct repl *r = src->arg;

	if (events & EPOLLOUT)
		cell_send_code(r);
	if ((events & ~(uint32_t)EPOLLOUT) && r->held == HELD_NOTHING)
		repl_read_ctl(r);
	repl_take_frames(r);
}

void repl_ctl_init(struct repl *r)
{
	r->ctl = (struct loop_src){.fd = -1, .fn = repl_on_ctl, .arg = r};
	alarm_init(&r->timer, r->agent, repl_on_timer, r);
	frame_reader_init(&r->ctl_in);
	frame_writer_init(&r->ctl_out, REPL_CTL_OUT_MAX);
}
