/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RENEW: makes this machine one of its own before anybody uses it: after it
 * has booted (kind boot), when it is a copy of a frozen template (create) or
 * of a frozen sandbox (fork). The order is that of api/agent-protocol.md:
 *
 *   kernel's random numbers, clock, names   renew.c
 *   files in /etc and /run                  renew_files.c
 *   egress, or none                         egress.c
 *   the Python sessions                     here: told by a signal, in the
 *                                           middle of a cell if one runs
 *   hooks in /etc/podflare/on-fork.d        hooks.c
 *   everything is thawed
 *
 * Until then nothing of the user's runs but the processes of the Python sessions,
 * inside of their handlers: what they had started is moved to frozen groups.
 * Fails closed: on any error, or when the host has gone, all stays frozen.
 *
 * Thread: the loop's. fork: this is what a copy does first.
 */
#pragma once

#include "agent/hooks.h"
#include "agent/renew.h"
#include "agent/request.h"
#include "lib/loop.h"

#include <stdbool.h>

struct agent;
struct repl;
struct stream;

#define RENEWAL_ENV 3

enum renewal_step { RENEWAL_NONE, RENEWAL_REPL, RENEWAL_HOOKS };

struct renewal {
	struct agent *agent;
	const char *etc_dir, *run_dir;
	struct renew_kept kept;
	struct stream *stream; /* NULL: the host has gone */
	struct request_renew req;
	enum renewal_step step;
	unsigned serial; /* tells one renewal's answers from another's */
	bool hold;       /* a REPL waits in its handler for others and the hooks */
	struct hooks hooks;
	char env_text[RENEWAL_ENV][96]; /* of the hooks */
	char *env[RENEWAL_ENV];
	struct loop_timer limit, again;
	char no_egress[256]; /* why there is none although there should be; "" */
};

void renewal_init(struct renewal *n, struct agent *a, const char *etc_dir, const char *run_dir);
/* The request. r is copied; what r->egress owns stays the caller's. */
void renewal_begin(struct stream *s, const struct request_renew *r);
/* A frame of the REPL: true when it was the answer to a renewal, also to one that is over. */
bool renewal_take_frame(struct renewal *n, struct repl *r, const struct frame *f);
void renewal_repl_ended(struct renewal *n, struct repl *r);
