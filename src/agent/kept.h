/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kept commands: they have a name, outlive the stream that started them, and write into logs
 * (keep_log.h) from which any number of streams may read, each at its own pace (attachment.h).
 * They never wait for a reader.
 *
 * A kept command is listed until it is forgotten, also when it has ended. It is freed when it is
 * neither listed, nor runs, nor has attachments: each of these holds a reference.
 *
 * Thread: the loop's. fork: a copy has them, too, without attachments.
 */
#pragma once

#include "agent/exec.h"
#include "agent/feed.h"
#include "agent/keep_log.h"

#define KEPT_MAX      32
#define KEPT_TEXT_MAX 200 /* bytes of its code or arguments that are told */

struct attachment;
struct command;

struct kept_list {
	struct list list; /* in the order of their starts */
	unsigned count;
};

struct kept {
	struct list link; /* in agent->kept while it is listed */
	struct agent *agent;
	unsigned refs;
	char *id;
	char *cwd;
	json_t *what; /* what it runs: members of its entry in the list */
	pid_t pid;
	struct command *command; /* NULL: it has ended */
	struct exec_end end;
	struct keep_log log[2];
	struct list attachments;
	struct attachment *writer; /* that its input comes from */
	struct feed feed;
	bool terminal;            /* it has one: all its output is stdout */
	struct stream *forgetter; /* who waits for its end */
};

static inline bool kept_ended(const struct kept *k)
{
	return !k->command;
}

/* EXEC with "keep", complete: starts it and attaches s. Takes code->fd; *r stays the caller's. */
void kept_start(struct stream *s, const struct request_exec *r, struct code *code);
/* NULL when none of that name is listed. */
struct kept *kept_find(struct agent *a, const char *id);
/* It is not listed any more, and ends if it runs; its logs lose their names. */
void kept_forget(struct kept *k);
void kept_ref(struct kept *k);
void kept_unref(struct kept *k);
/* Members of its EXIT; `missed` bytes of its logs were not there for the reader. */
json_t *kept_exit_object(const struct kept *k, uint64_t missed);
/* COMMAND. *r stays the caller's. */
void kept_request(struct stream *s, const struct request_command *r);
