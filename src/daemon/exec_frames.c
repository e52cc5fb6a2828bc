/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the agent says of a running command, frame by frame: output, events, its
 * end. Everything is checked, as the guest may have taken the agent over.
 */
#include "daemon/agent_failure.h"
#include "daemon/egress/egress.h"
#include "daemon/exec_impl.h"
#include "daemon/limits.h"

#include <errno.h>
#include <string.h>

/* An honest agent keeps to output_limit itself. */
static int exec_output(struct exec *e, const struct frame *f)
{
	uint64_t *n = &e->output[f->type == FRAME_STDERR];

	*n += f->len;
	if (*n > e->p.output_limit + LIMIT_OUTPUT_SPARE)
		return -EPROTO;
	e->heard = true;
	/* Without a client there is nobody to keep it for. */
	if (e->req)
		exec_pending_bytes(&e->in, f);
	return 0;
}

/*
 * A piece of an event, of the whole no more than LIMIT_EVENT; an empty one takes back those before.
 * It is checked at once, so that nothing of the whole takes long: what is wrong with it counts when
 * the last one comes.
 */
static int exec_part(struct exec *e, const struct frame *f)
{
	int rc = e->req ? exec_hold_event(e, f->len) : 0;

	if (buf_len(&e->parts) == 0)
		exec_events_feed_init(&e->fed);
	if (rc == 0 && e->req) {
		rc = buf_append(&e->parts, f->payload, f->len);
		json_feed_more(&e->fed, buf_data(&e->parts), buf_len(&e->parts));
		agent_spend(e->s, f->len);
	}
	if (f->type == FRAME_EVENT_PART && f->len == 0) {
		buf_free(&e->parts);
		exec_held_settle(e);
	}
	return rc == -ENOBUFS ? -EPROTO : rc;
}

static int exec_event(struct exec *e, const struct frame *f)
{
	int rc;

	if (!e->req)
		return 0;
	if (buf_len(&e->parts) == 0) {
		agent_spend(e->s, f->len);
		rc = exec_events_event(&e->out, &e->in, f->payload, f->len, exec_now_ms());
	} else {
		rc = exec_part(e, f);
		if (rc == 0)
			rc = exec_events_long(&e->out, &e->in, &e->fed, &e->parts, exec_now_ms());
		buf_free(&e->parts);
		exec_held_settle(e);
	}
	e->heard |= rc == 0;
	return rc;
}

/* EXIT: 1 when the exec is over with it, -errno. */
static int exec_exit(struct exec *e, const struct frame *f)
{
	struct exec_exit x = {0};
	bool cancelled;
	int rc = buf_len(&e->parts) ? -EPROTO : exec_exit_parse(f, &x, &cancelled);

	/* Cancelled without our asking: it ends in a word that clients do not know. */
	if (rc == 0 && cancelled && !e->cancelled_for)
		rc = -EPROTO;
	if (rc == 0) {
		if (cancelled)
			x.reason = e->cancelled_for;
		if (cancelled && strcmp(x.reason, "timeout") == 0)
			x.code = 124;
		/* A denial was sent before the guest could see it: it is there by now. */
		egress_drain(e->sb);
		x.denied = e->denied;
		if (e->req && exec_events_exit(&e->out, &x, exec_now_ms()) < 0)
			e->broken = true;
		agent_release(e->s);
		exec_finish(e);
	}
	json_decref(x.log);
	return rc == 0 ? 1 : rc;
}

bool exec_frame(struct exec *e, const struct frame *f)
{
	struct agent_failure why;
	int rc;

	/* What comes of the command, for exec_watch.c; an answer to PING does not. */
	if (f->type != FRAME_PONG && f->type != FRAME_STDIN_ACK)
		e->bytes += f->len;
	switch (f->type) {
	case FRAME_STDOUT:
	case FRAME_STDERR:
		rc = exec_output(e, f);
		break;
	case FRAME_PONG:
		return true;
	case FRAME_STDIN_ACK:
		rc = exec_acked(e, f);
		break;
	case FRAME_EVENT_PART:
		rc = exec_part(e, f);
		break;
	case FRAME_EVENT:
		rc = exec_event(e, f);
		break;
	case FRAME_EXIT:
		rc = exec_exit(e, f);
		if (rc > 0)
			return false;
		break;
	case FRAME_ERROR:
		agent_failure_parse(f, &why);
		agent_failure_of_exec(&why, e->p.language);
		exec_fail(e, &why, "refused", "preserved");
		return false;
	default:
		rc = -EPROTO;
		break;
	}
	if (rc == -EDQUOT || rc == -ENOSPC) {
		exec_held_failure(&why, rc);
		exec_fail(e, &why, why.code, NULL);
		return false;
	}
	/* Without memory its client is let go; but there is nothing to come behind an EXIT. */
	if (rc == -ENOMEM && f->type != FRAME_EXIT) {
		e->broken = true;
	} else if (rc < 0) {
		exec_lost(e, rc);
		return false;
	}
	return true;
}
