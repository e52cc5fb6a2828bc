/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Python REPL: one long-lived process of the user, supervised, and the
 * cells that run in it, one at a time.
 *
 * The process is hostile like all user code: its frames are checked, what it
 * sends out of turn ends it. When it dies a new one is started, and the next
 * cell is told that its state is lost.
 *
 * The cgroup holds the process and what the running cell has started. When a
 * cell leaves processes behind, the session moves on into a new group, so that
 * a later cell can be killed whole without them.
 *
 * Thread: the loop's. fork: the REPL gets its end of the control socket as
 * descriptor 3, named by REPL_CTL.
 */
#pragma once

#include "agent/alarm.h"
#include "agent/egress.h"
#include "agent/exec.h"
#include "agent/feed.h"
#include "agent/reap.h"
#include "lib/loop.h"
#include "proto/frame.h"

#include <stdbool.h>

struct agent;
struct cgroup;
struct output;
struct repl;
struct stream;

enum repl_state {
	REPL_ABSENT,   /* not started, or dead before it was ready; the next cell starts it */
	REPL_STARTING, /* READY not seen yet; a cell waits */
	REPL_READY,
	REPL_BUSY,     /* a cell runs */
	REPL_WARMING,  /* it loads ahead what cells will need */
	REPL_SETTLING, /* a PING is out behind an interrupt that may have missed its cell */
};

/* What keeps a frame of the REPL from being passed on. */
enum repl_held {
	HELD_NOTHING,
	HELD_OUTPUT, /* output written before it is still being delivered */
	HELD_ROOM,   /* the stream has no room */
	HELD_END,    /* the cell is over; what it has left is being ended and delivered */
};

struct repl_cell {
	struct list link; /* in repl->waiting until it runs */
	struct repl *repl;
	struct stream *stream; /* NULL: the peer is gone, and the cell is cancelled or detached */
	struct request_exec req;
	struct feed feed;
	struct code code;
	size_t sent; /* bytes of the code */
	bool end_sent;
	bool detached;       /* inherited by a fork */
	unsigned interrupts; /* SIGINTs sent */
	unsigned presses;    /* steps taken against one that must end */
	struct alarm alarm;  /* deadline, next step against what must end */
	struct alarm last;   /* its end is told */
	struct alarm death; /* of what a session had started that died by itself: end of the wait */
	size_t event_passed; /* bytes of an event of which more is to come */
	bool event_open;     /* a piece of an event was passed on, and its end was not */
	bool event_skip;     /* the rest of this event is dropped */
	bool over;           /* EXIT has come, or the session has died */
	bool delivers;       /* and all is dead that has to be */
	bool undead;         /* or not, but it is not awaited any longer */
	bool too_much;       /* it wrote more than it may */
	struct exec_end end;
	uint64_t oom_before;
	uint64_t interrupt_ns; /* when INTERRUPT has last done something */
};

struct repl {
	struct list link; /* in agent->contexts; first, see loop_defer_free() */
	struct agent *agent;
	const char *script;
	char *dir; /* where its processes start; NULL = the home */
	enum repl_state state;
	pid_t pid; /* 0 = none */
	struct reap_child child;
	struct cgroup *cgroup;
	struct cgroup *dying; /* the one that was left to what has been killed; NULL = none */
	struct cgroup *apart; /* what it had started, while it is renewed; NULL = none */
	struct output *output;
	struct loop_src ctl;
	struct frame_reader ctl_in;
	struct frame_writer ctl_out;
	int ctl_fd; /* our end of the control socket */
	enum repl_held held;
	struct frame held_frame; /* inside ctl_in */
	size_t event_bytes;      /* in pieces of an event that is not complete */
	struct repl_cell *cell;  /* runs; NULL unless BUSY */
	struct list waiting;     /* of repl_cell: the first comes next */
	struct stream *warm;     /* waits for the answer to its WARM */
	struct alarm timer;      /* grace time of a PING, or a closed socket */
	struct alarm busy_timer; /* time to refuse those that wait for others */
	const char *fault;       /* why the agent ended it */
	unsigned late_reads;     /* of the control socket after its end */
	int wstatus;
	bool root; /* it runs as root, not as the user */
	bool ctl_eof;
	bool taking;   /* repl_take_frames() is on the stack */
	bool exited;   /* reaped; what it left behind is being delivered */
	bool buried;   /* and nothing more is expected of its control socket */
	bool replace;  /* killed to start a new one: nobody misses its state */
	bool doomed;   /* see repl_end() */
	bool renewing; /* its answer to a renewal is awaited */
	bool quiet;    /* no code of the user's runs before the next cell: its own word */
	bool owes;     /* a renewal, which it does when it is asked to, before that cell */
	bool asked;    /* to do it: the answer is awaited, and it is owed until that has come */
	bool paying;   /* a FREEZE waits until it has done that */
	bool to_stand; /* it was told to stand still, and has not yet (hold.h) */
	bool stands;   /* it does */
	bool lost;     /* one died: the next cell is told */
	enum egress_mode egress; /* whose environment it has */
	char id[REQUEST_ID_MAX + 1];
	char lost_why[160];
};

/* id: name of the context. */
void repl_init(struct repl *r, struct agent *a, const char *script, const char *id);
/* Starts the process if there is none. When that fails it stays absent, waiting cells are told. */
void repl_start(struct repl *r);
/* Kills what runs and starts anew; nobody is told that state is lost, but the running cell. */
void repl_restart(struct repl *r);
/* Kills what runs and frees r, which was allocated, when that is over. No cell waits. */
void repl_end(struct repl *r);
/* Runs the code on s, or answers why not. Takes code->fd and what *q owns. */
void repl_exec(struct repl *r, struct stream *s, struct request_exec *q, struct code *code);
/* The cells that wait for their turn are given up, with their streams (see stream_abandon()). */
void repl_abandon_waiting(struct repl *r);
/* Whether its process is not on its way out, as far as is known. */
static inline bool repl_lives(const struct repl *r)
{
	return !r->exited && !r->fault && !r->replace && !r->doomed;
}
/* Whether a process is there that can be told to renew itself. */
bool repl_can_renew(const struct repl *r);
/* Whether it can be left until the next cell: it is between cells, and nothing of the user's runs.
 */
bool repl_can_defer(const struct repl *r);
/* Asks for the renewal that is owed, once; the answer comes to renewal_take_frame(). */
void repl_pay(struct repl *r);
/* What its frames OK and READY say about `quiet`. */
void repl_note_quiet(struct repl *r, const struct frame *f);
/* The process is to be replaced by a new one when it has not begun to serve: nothing is lost. */
void repl_replace_unready(struct repl *r);
/* WARM: makes the session load now what it otherwise loads when first used. Answers on s. */
void repl_warm(struct repl *r, struct stream *s);
/* "starting", "ready", "busy", "absent". */
const char *repl_state_name(const struct repl *r);
