/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One command in a sandbox, from the request to its exit event.
 *
 * The execs of one context of a sandbox run one at a time in order of arrival;
 * those of different contexts beside each other. One that has not got its turn by its
 * queue_timeout is refused. Output goes
 * from the agent's stream into event lines as fast as the client takes them,
 * no faster. A client that leaves cancels its command; the next one starts
 * when the agent has confirmed the end of it.
 *
 * The agent ends a command at its timeout; exec_watch.c sees to it that its client
 * hears of that in time when the agent does not.
 *
 * Refusals that come before the reply has begun are HTTP errors; later ones
 * are a line on stderr and exit -1.
 *
 * Memory of one exec: code and stdin of its request until the agent has them
 * (LIMIT_JSON_BODY), one event in parts and one in lines (LIMIT_EVENT each), and some
 * 200 KiB. All execs of a sandbox together: LIMIT_HELD, and these 200 KiB (held.h).
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/http.h"
#include "daemon/sandbox.h"

#define EXEC_ID_MAX IDS_NAME_MAX

struct exec_params {
	/* Owned strings of the request's body, or NULL: what code and stdin_data point into. */
	json_t *code_text, *stdin_text;
	const char *code;
	size_t code_len;
	char *head; /* owned: payload of the EXEC frame */
	size_t head_len;
	bool rich;
	const char *language; /* constant; "argv" for a program */
	char id[EXEC_ID_MAX + 1], context[EXEC_ID_MAX + 1];
	uint64_t timeout_ms; /* 0: none */
	double queue_s;      /* that it may wait for its turn; < 0: any time */
	uint64_t output_limit;
	bool has_stdin;
	const uint8_t *stdin_data;
	size_t stdin_len;
	uint8_t *stdin_own; /* owned: what stdin_data points into when it was base64 */
};

void exec_params_free(struct exec_params *p);
/* Code and stdin alone. */
void exec_params_drop_texts(struct exec_params *p);

/* Takes over the request and what p owns. Answers it, at once or later. */
void exec_submit(struct sandbox *sb, struct request *r, struct exec_params *p);

enum exec_found { EXEC_UNKNOWN, EXEC_IS_QUEUED, EXEC_IS_RUNNING, EXEC_HAS_ENDED };

/*
 * Ends the exec of this id early, what it found: a queued one leaves the queue, a
 * running one is interrupted once (escalate: cancelled, which ends in a kill). One
 * that has ended is left alone, so that an interrupt never hits the next.
 */
enum exec_found exec_interrupt(struct sandbox *sb, const char *id, bool escalate);

/* {"execs": [...]}: those that live, in order of arrival. New reference, NULL without memory. */
json_t *exec_list(struct sandbox *sb);

/* Answers for what held_take() has said of code, or stdin, that would wait in a sandbox. */
void exec_refuse_held(struct request *r, int error);

/* The host failed a request of the disk: whoever runs a command is told. */
void exec_disk_failed(struct sandbox *sb, int errnum);

struct record;

/* The id of the exec that runs, when it is one alone; NULL. For what the guest does meanwhile. */
const char *exec_only_running(struct sandbox *sb);
/* Its egress was denied something: the execs that it may have been are told at their end. */
void exec_denied(struct sandbox *sb, const struct record *r);

/* What a sandbox remembers of ended execs goes with it. */
void exec_forget_all(struct sandbox *sb);
