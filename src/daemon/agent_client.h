/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams to the agent of one sandbox. A stream is one end of a socket pair
 * whose other end the VMM connects to the guest; it carries one conversation
 * (frames, proto/frame.h) at a time. A stream whose conversation ended cleanly
 * is kept for the next one, so that a request costs one round trip.
 *
 * Pull model: stream->fn is called when something may have changed (input,
 * room for output, the end); the owner then takes frames with agent_next()
 * until it returns 0, or stops earlier when it has no use for more: what it
 * does not take is not read, and the guest is slowed down.
 *
 * Turns: of all streams of a sandbox together no more than AGENT_TURN_FRAMES
 * frames or AGENT_TURN_BYTES bytes are taken before the loop has seen to
 * everybody else, its timers included; then agent_next() returns 0 though there
 * may be more, and fn is called for that. So a guest that writes as fast as it is
 * read, on as many streams as it has, keeps nobody waiting, and no deadline from
 * coming. Its streams wait for each other in a row, so each of them gets on.
 *
 * The end of a stream is told a moment late (AGENT_EOF_NS): a VMM that dies
 * closes its streams before its control socket, and the owner is better told
 * that the sandbox has ended, and why, than that a stream broke.
 *
 * While the guest's user processes are frozen the agent serves only a few
 * requests, and refuses the others. agent_hold() keeps what begins meanwhile
 * here, until agent_unhold(); what had begun before rests in the guest.
 *
 * Memory: at most one frame in, STREAM_OUT_MAX out. The guest is hostile:
 * broken frames end the stream, never the daemon.
 * Thread: the loop's. fork: close-on-exec.
 */
#pragma once

#include "lib/err.h"
#include "lib/list.h"
#include "lib/loop.h"
#include "proto/frame.h"

#include <stdbool.h>
#include <stdint.h>

struct vmm;
struct agent_stream;

typedef void agent_stream_fn(struct agent_stream *s);

struct agent {
	struct loop *loop;
	struct vmm *vmm;
	struct list streams; /* in conversation */
	struct list idle;    /* kept for the next */
	struct list waiting; /* for their turn, by wait; first come, first served */
	unsigned int nstreams, nidle;
	struct loop_timer turn;       /* armed while some wait */
	struct agent_stream *serving; /* whose turn it is; NULL: nobody has waited for it */
	uint64_t round;               /* of the loop, which what is left of the turn is for */
	int turn_frames;              /* that may still be taken in it */
	ssize_t turn_bytes;
	bool last; /* agent_last_turn() was called: this is the last one */
	bool hold;
	uint64_t hold_ns, hold_at; /* how long it was held before; since when it is */
};

struct agent_stream {
	struct list link; /* first: overwritten when freed */
	struct agent *agent;
	uint32_t id;
	int fd; /* -1 once closed */
	struct loop_src src;
	struct frame_reader in;
	struct frame_writer out;
	bool drained; /* agent_next() has said 0: input is awaited */
	bool held;    /* nothing is sent before agent_unhold() */
	bool corked;  /* see agent_cork() */
	bool mute;    /* the other side takes no more; what it said before is still read */
	bool eof;     /* the other side has closed; error follows when grace is over */
	struct loop_timer grace;
	struct list wait;   /* in agent->waiting, or in none */
	ssize_t last_bytes; /* that are still taken in the last turn */
	unsigned int pings; /* without an answer */
	int error;          /* negative errno; what agent_next() returns from now on */
	agent_stream_fn *fn;
	void *user;
};

void agent_init(struct agent *a, struct loop *loop, struct vmm *vmm);
/* Closes every stream; owners must have let go of theirs. */
void agent_free(struct agent *a);

/* A stream for a conversation. Frames may be sent at once. NULL and err when there is none. */
struct agent_stream *agent_open(struct agent *a, agent_stream_fn *fn, void *user, struct err *err);
/*
 * The same on a new connection, at once, whatever is held: for what the agent
 * serves in any state. Streams that were opened before are known to the agent
 * before this one is.
 */
struct agent_stream *agent_open_new(struct agent *a, agent_stream_fn *fn, void *user,
				    struct err *err);
void agent_hold(struct agent *a);
void agent_unhold(struct agent *a);
/* How long it has been held in all: time in which the guest could do nothing. */
uint64_t agent_held_ns(const struct agent *a);
/* The sandbox ends: what its streams still hold is taken now, within bounds, or not at all. */
void agent_last_turn(struct agent *a);
/* What is made of the last frame takes as long as so many bytes more would have. */
void agent_spend(struct agent_stream *s, size_t bytes);
/* The conversation ended with its final frame: the stream may serve the next. */
void agent_release(struct agent_stream *s);
/* Ends the conversation: the agent stops what runs on it. NULL is fine. */
void agent_close(struct agent_stream *s);

/* Payload bytes that agent_send() takes now; 0 = wait for fn. Keeps room for short control frames.
 */
size_t agent_room(const struct agent_stream *s);
/* Queues and sends a frame. What fails comes out of agent_next(), behind what the agent had to say.
 */
void agent_send(struct agent_stream *s, uint8_t type, const void *payload, size_t len);
/*
 * What is sent in between leaves in one piece, if it is short: each one costs the VMM a turn, and
 * its guest an interrupt. agent_uncork() before the loop goes on.
 */
void agent_cork(struct agent_stream *s);
void agent_uncork(struct agent_stream *s);

/*
 * 1 and a frame (valid until the next call), 0 when none is there yet (fn will
 * be called), or -errno: -ECONNRESET when the other side closed, -EPROTO or
 * -EMSGSIZE when it broke the protocol, what the VMM said when it refused.
 * Output or data without a byte breaks it, and so does a PONG that no PING asked
 * for.
 */
__must_check int agent_next(struct agent_stream *s, struct frame *f);

/* The VMM could not connect the stream with this id. */
void agent_refused(struct agent *a, uint32_t id, int errnum);

/* What an error of agent_next() means, for a sentence. */
const char *agent_error_text(int error);
