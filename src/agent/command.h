/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands: each in a session and a cgroup of its own, beside each other and
 * beside the REPL.
 *
 * A command ends when its first process ends. What was written until then is
 * delivered before EXIT; children in the background live on, their later output
 * is read and discarded. But when it is made to end, by CANCEL, the end of the
 * stream, or its deadline, its whole cgroup is killed, and dead before EXIT.
 *
 * A kept command (kept.h) has an owner in the place of a stream: who is told of its end, and has
 * its logs and its input. Thread: the loop's.
 */
#pragma once

#include "agent/exec.h"
#include "agent/output.h"

#include <sys/types.h>

struct command;
struct feed;

struct command_owner {
	struct feed *feed;     /* NULL: /dev/null */
	struct keep_log *logs; /* two, of stdout and stderr */
	output_logged_fn *logged;
	/* All is in the logs; the command is gone. */
	void (*ended)(void *arg, const struct exec_end *end);
	void *arg;
};

/* Runs the code on s, whose EXEC request is complete. Takes code->fd; *r stays the caller's. */
void command_start(struct stream *s, const struct request_exec *r, struct code *code);

/* Starts a command for an owner, who outlives it. NULL with err. code->fd stays the caller's. */
struct command *command_start_kept(struct agent *a, const struct request_exec *r,
				   const struct code *code, const struct command_owner *owner,
				   struct err *err);
/* Of its first process; 0 when that has ended. */
pid_t command_pid(const struct command *c);
/* Where it has started; the caller's, NULL when that is not known. */
char *command_take_cwd(struct command *c);
/* To its process group, or to the first process alone: 0 or -errno, -ESRCH when it has ended. */
__must_check int command_signal(const struct command *c, int sig, bool group);
/* Of its terminal, if it has one. */
void command_resize(const struct command *c, const struct terminal_size *size);
/* INTERRUPT. */
void command_interrupt(struct command *c);
/* CANCEL: it is made to end, and will tell so. */
void command_cancel(struct command *c);
