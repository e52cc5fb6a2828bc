/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The user's terminal: raw while a shell of a sandbox has it, and as it was
 * before on every way out (SIGKILL excepted): by terminal_restore(), and by a
 * handler for the signals of a program's own faults.
 *
 * One thread; one terminal at a time is raw. fork: none while it is raw.
 */
#pragma once

#include "lib/cleanup.h"

#include <stdbool.h>
#include <stdint.h>
#include <termios.h>

#define TERMINAL_SIZE_MAX 1000u

struct terminal {
	int fd;
	bool raw;
	struct termios before;
};

struct terminal_size {
	unsigned cols, rows;
};

/* Keys go through one by one and unseen, Ctrl-C included; output is as it comes. */
__must_check int terminal_raw(struct terminal *t, int fd);
/* Raw again after somebody else changed it meanwhile: behind a stop of the process. */
void terminal_again(const struct terminal *t);
/* As it was. Harmless when it is not raw. */
void terminal_restore(struct terminal *t);

/* Its size, each from 1 to TERMINAL_SIZE_MAX; 80x24 when it has none or fd is no terminal. */
struct terminal_size terminal_get_size(int fd);

/*
 * A descriptor to write to fd without blocking and without making the one that
 * we share with others non-blocking: opened anew for a terminal and a pipe; a
 * copy (which may block) for all else. -errno.
 */
int terminal_open_output(int fd);

/*
 * What the user types, searched for "~." behind a line's end (or at the very
 * start), which is how to leave a shell that does not answer. "~~" sends one
 * "~"; a "~" before anything else is sent with it.
 */
struct terminal_escape {
	enum { ESCAPE_LINE_START, ESCAPE_IN_LINE, ESCAPE_TILDE } state;
};

/*
 * Copies to out (room for len + 1) what is to be sent; returns its length.
 * *leave: "~." came; what is behind it is dropped.
 */
size_t terminal_escape_scan(struct terminal_escape *e, uint8_t *out, const uint8_t *in, size_t len,
			    bool *leave);
