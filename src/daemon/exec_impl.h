/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The exec as its parts see it: exec.c (queue, reply, ends), exec_frames.c (what
 * the agent says), exec_input.c (what is sent to it), exec_watch.c (silence and deadline),
 * exec_control.c (looking for one, interrupting it). Private to these.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/agent_failure.h"
#include "daemon/exec.h"
#include "daemon/exec_events.h"
#include "daemon/ndjson.h"

enum exec_state { EXEC_QUEUED, EXEC_RUNNING, EXEC_DONE };

/* Frames that wait until the code is with the agent. */
enum exec_order { ORDER_NONE, ORDER_INTERRUPT, ORDER_CANCEL };

/* exec_watch.c: which deadline is the next one. */
enum exec_stage { STAGE_QUEUED, STAGE_TIMEOUT, STAGE_SLACK, STAGE_OVERDUE, STAGE_CANCELLED };

struct exec {
	struct list link; /* sb->execs; first: overwritten when freed */
	struct sandbox_user user;
	struct loop *loop;
	struct sandbox *sb;  /* not to be touched when DONE: it may be gone */
	struct request *req; /* NULL: the client has left */
	struct agent_stream *s;
	struct held *place; /* of those that run (daemon.h), or NULL */
	enum exec_state state;
	struct exec_params p;
	int64_t queued_ms, started_ms; /* since 1970; started 0: not yet */
	bool begun /* the reply */, heard /* something that an HTTP error could not tell */;
	bool broken; /* no memory for events */
	bool disk_told;
	json_t *denied; /* owned: of egress while it ran (exec_denied.c); NULL: nothing */

	/* exec_input.c */
	size_t code_sent, stdin_sent, stdin_acked;
	bool end_sent, stdin_ended;
	enum exec_order order;
	const char *cancelled_for; /* termination_reason when a CANCEL of ours ends it */

	/* exec_watch.c */
	struct loop_timer silence, limit;
	bool pinged;
	enum exec_stage stage;
	uint64_t bytes, bytes_late;    /* that came of the command; and until its deadline */
	uint64_t paused_ns, paused_at; /* how long reading has rested; since when it does, 0: not */
	uint64_t excused_ns;           /* what did not count when limit was set */
	bool overdue;                  /* the sandbox is ended for its sake */

	/* exec_held.c: what is taken of held, which is the sandbox's until it has ended */
	struct held *held;
	size_t held_texts, held_events;

	struct ndjson out;
	struct exec_pending in; /* output that was not taken yet */
	struct buf parts;       /* of an event */
	struct json_feed fed;   /* what is known of them */
	uint64_t output[2];     /* bytes of stdout and stderr that came */
	bool paused;            /* the client sets the pace: the stream is not read */
	struct loop_timer grace;
};

/* Milliseconds since 1970. */
int64_t exec_now_ms(void);
/* Code and stdin wait. As held_take(). */
__must_check int exec_hold_texts(struct exec *e);
/* For what exec_hold_event() has said: why the command fails. */
void exec_held_failure(struct agent_failure *why, int error);
/* They are with the agent, or not needed any more. Harmless the second time. */
void exec_drop_texts(struct exec *e);
/* So much more of an event comes. As held_take(). */
__must_check int exec_hold_event(struct exec *e, size_t len);
/* Some of it may have gone. */
void exec_held_settle(struct exec *e);
/* It leaves its sandbox. */
void exec_held_leave(struct exec *e);

/* One frame of a running command. False: the exec is over, e may be gone. */
bool exec_frame(struct exec *e, const struct frame *f);
/* Its stream broke, or what came of it made no sense; the agent is looked at. */
void exec_lost(struct exec *e, int error);
/* Ends it for a reason that is not the command's: as HTTP error while that is possible. */
void exec_fail(struct exec *e, const struct agent_failure *why, const char *reason,
	       const char *state);
/* Out of the queue; the next one may run. The stream has been released or closed. */
void exec_finish(struct exec *e);

/* Sends as much as fits of code, stdin, and the order that waits. */
void exec_feed(struct exec *e);
/* STDIN_ACK: 0 or -EPROTO. */
__must_check int exec_acked(struct exec *e, const struct frame *f);
/* Sends INTERRUPT or CANCEL, as soon as the code is with the agent. */
void exec_give_order(struct exec *e, enum exec_order order);
/* The same with CANCEL; when it ends so, termination_reason is why. */
void exec_cancel(struct exec *e, const char *why);

void exec_watch_init(struct exec *e);
/* It waits for its turn, no longer than it may. */
void exec_watch_queued(struct exec *e);
/* The command runs. */
void exec_watch_start(struct exec *e);
/* A frame has come, or reading goes on after a pause. */
void exec_watch_heard(struct exec *e);
/* Reading rests: the client sets the pace, nobody is silent. */
void exec_watch_pause(struct exec *e);
/* It does not rest (any more). */
void exec_watch_go_on(struct exec *e);
/* It was cancelled, and the end is awaited no longer than from a silent guest. */
void exec_watch_cancelled(struct exec *e);
void exec_watch_stop(struct exec *e);

/* Out of the queue at its client's wish. */
void exec_leave_queue(struct exec *e);
/* Out of the queue because it has waited long enough. */
void exec_refuse_queued(struct exec *e);
/* Its id is remembered. */
void exec_remember(struct exec *e);
/* The one of this id that lives, or NULL. */
struct exec *exec_find(struct sandbox *sb, const char *id);
