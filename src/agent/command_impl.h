/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command as its parts see it: command.c (its life), command_launch.c (what it
 * is started with). Private to these. Thread: the loop's.
 */
#pragma once

#include "agent/agent.h"
#include "agent/command.h"
#include "agent/feed.h"

struct command {
	struct agent *agent;
	/* NULL when the peer is gone, or talks to the original of this copy */
	struct stream *stream;
	struct command_owner owner; /* of a kept command; it has no stream */
	struct output *output;
	struct feed own_feed;
	struct feed *feed; /* that one, or the owner's; NULL: no input */
	char *cwd;         /* for the owner */
	struct cgroup *cgroup;
	struct reap_child child;
	struct alarm alarm; /* deadline, next step against what must end */
	struct alarm last;  /* the end is told */
	uint64_t step_ns;
	unsigned step; /* of the deadline */
	bool over;     /* all is dead that has to be; the last of the output is delivered */
	bool undead;   /* or not, but it is not awaited any longer */
	bool told;     /* its end: only the death of its process is awaited */
	bool too_much; /* it wrote more than it may */
	struct exec_end end;
};

/* Its output, its first process and its deadline; c->child has its callback. code->fd stays the
 * caller's. What was made of it when it fails is command_free()'s. */
__must_check int command_launch(struct command *c, const struct request_exec *r,
				const struct code *code, struct err *err);
