/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the verbs of `podflare` share: their entry points, exit statuses, and
 * the small helpers for options. One process, one thread, ends when the verb
 * is done. fork: children are made by box.c, kvmprobe.c and doctor_tools.c
 * only, and exec or _exit at once.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <stdint.h>

/* Exit statuses of all verbs but `box run` and `shell`, which pass on another's. */
enum cli_exit {
	CLI_OK = 0,
	CLI_FAILED = 1, /* said why on stderr */
	CLI_USAGE = 2,  /* wrong command line, or a refused combination */
};

/* A verb gets its own name as argv[0]. Each has its file. */
int verb_serve(int argc, char **argv);
int verb_shell(int argc, char **argv);
int verb_template(int argc, char **argv);
int verb_box(int argc, char **argv);
int verb_policy(int argc, char **argv);
int verb_doctor(int argc, char **argv);

/* "podflare: <sentence>" on stderr. */
void cli_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The same with a hint how to get help; returns CLI_USAGE. */
int cli_usage_error(const char *verb, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A whole decimal number between min and max: 0, or -EINVAL with a sentence that names `option`. */
__must_check int cli_parse_number(const char *option, const char *text, uint64_t min, uint64_t max,
				  uint64_t *out, struct err *err);
