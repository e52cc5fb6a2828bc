/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare shell`: a login shell in a sandbox. shell.c makes and deletes the
 * sandbox and the command; what goes between the user and the shell is
 * shell_terminal.c when stdin is a terminal, and shell_pipe.c when it is not.
 *
 * One thread. fork: none.
 */
#pragma once

#include "cli/endpoint.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define SHELL_ID_MAX 64u

/* Which shell, and how to reach it. */
struct shell {
	struct endpoint to;
	int stop_fd; /* a signalfd: SIGINT, SIGTERM, SIGHUP, SIGQUIT */
	char sandbox[SHELL_ID_MAX + 1];
	char command[SHELL_ID_MAX + 1];
};

/* How it ended. */
struct shell_end {
	enum {
		SHELL_LOST,   /* it did not: the connection or we failed */
		SHELL_EXITED, /* with an exit code */
		SHELL_GONE,   /* the sandbox, or the command in it, ended under it */
		SHELL_LEFT,   /* the user left: ~. */
		SHELL_SIGNAL, /* a signal to this process */
	} how;
	int code;        /* exit code; number of the signal */
	char reason[32]; /* SHELL_GONE: the termination_reason */
};

#define SHELL_PATH_MAX 256u

/* "/v1/sandboxes/ID/commands/CID" and what comes behind it. */
void shell_path(char out[SHELL_PATH_MAX], const struct shell *s, const char *behind);

/* Takes an exit event; -EPROTO when it is none. */
__must_check int shell_take_exit(struct shell_end *end, const json_t *event);

/* stop_fd is readable: which signal it was. */
void shell_take_signal(struct shell_end *end, int stop_fd);

/*
 * Both: move bytes between our descriptors 0, 1, 2 and the command until one
 * of the ends comes. Negative with a sentence: SHELL_LOST.
 */
__must_check int shell_terminal(const struct shell *s, struct shell_end *end, struct err *err);
__must_check int shell_pipe(const struct shell *s, struct shell_end *end, struct err *err);
