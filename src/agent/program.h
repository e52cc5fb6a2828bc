/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a command executes: program and arguments for the language of a request.
 * Short code becomes an argument (better messages: "bash: line 3: ..."), longer
 * code a file. Thread: the loop's. fork: no state.
 */
#pragma once

#include "agent/exec.h"

#define PROGRAM_ARGS 4

struct program {
	const char *path;
	char **argv;
	bool search;  /* path is a name to look for in PATH, unless it has a slash */
	int extra_fd; /* the code as a file, -1 = none; the caller's */
	char *text;   /* the code as an argument */
	char *args[PROGRAM_ARGS];
};

/* *r and the code have to outlive p. node: the interpreter of JavaScript. -ENOENT when that is
   not there. */
__must_check int program_init(struct program *p, const struct request_exec *r,
			      const struct code *code, const char *node, struct err *err);
void program_free(struct program *p);
