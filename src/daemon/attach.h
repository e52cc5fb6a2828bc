/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client's conversation with a kept command: what it has written from given
 * positions on and then as it comes, and its stdin. The command is the agent's
 * and does not end with the conversation; the host keeps nothing of it between
 * two requests, so that commands live on in the copies of a fork.
 *
 * The conversation is over with EXIT or ERROR, when the stream is lost, or at
 * attach_close(). While it is silent the guest is asked now and then
 * whether it lives; an agent that does not answer at all is given as long as a
 * silent command.
 *
 * The object is part of its owner's. Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/http.h"
#include "daemon/sandbox.h"

struct attach;

struct attach_ops {
	/* Something may have changed: take frames with attach_next(), send what waits. */
	void (*event)(struct attach *a);
	/* The conversation is lost (negative errno); it is closed already. */
	void (*lost)(struct attach *a, int error);
	/* The sandbox is ending; what the command wrote before is still to be taken. */
	void (*ended)(struct attach *a, const char *reason);
};

struct attach {
	const struct attach_ops *ops;
	struct sandbox *sb;
	struct sandbox_user user;
	struct agent_stream *s; /* NULL once it is over */
	struct loop_timer silence;
	bool attached;          /* the agent has told the position; what follows is set */
	bool moved;             /* it has told one anew: output in between was thrown away */
	int64_t pid, offset[2]; /* of the next bytes of stdout and stderr, when it told that */
	uint32_t unacked;       /* bytes of stdin that the agent has not confirmed */
};

/* Positions of stdout and stderr in the query; -1: only what is new. False: answered. */
bool attach_offsets(struct request *r, int64_t out[2]);

/* Begins it. a is zeroed memory. 0, or a negative errno and err: nothing was begun. */
__must_check int attach_open(struct attach *a, struct sandbox *sb, const char *id,
			     const int64_t offset[2], bool stdin_too, const struct attach_ops *ops,
			     struct err *err);

/*
 * 1 and a frame: STDOUT, STDERR, EXIT, ERROR, PONG, or an EVENT (the one that tells a position
 * comes as FRAME_EVENT too, with a->moved set, unless it is the first). 0: none for now, or it
 * is over (a->s is NULL then, and ops->lost has been called if it was lost).
 */
__must_check int attach_next(struct attach *a, struct frame *f);

/* The same, but nothing behind the first position: it returns 0 when a->attached has become true.
 */
__must_check int attach_first(struct attach *a, struct frame *f);

/* Bytes of stdin that can be sent now. */
size_t attach_room(const struct attach *a);
void attach_send(struct attach *a, const void *data, size_t len);

/* It came to its final frame. */
void attach_release(struct attach *a);
/* Leaves. Harmless when it is over. */
void attach_close(struct attach *a);
