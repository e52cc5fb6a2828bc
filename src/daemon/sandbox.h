/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of one sandbox. It is made by forking a VM: a template's, or that of
 * another sandbox.
 *
 *   FORKING  its VM is being forked; RENEW is on its way to the guest
 *   READY    the process is there and the agent has answered RENEW
 *   ENDED    whatever the cause; all users were told, the VMM is being killed
 *
 * One that is READY is unknown to clients until sandbox_announce(): it may be
 * in the pool, or wait for others of the same fork.
 *
 * The end can come at any time from any side; sandbox_end() is the only way
 * into ENDED. The object goes away when the VMM's process has been reaped.
 *
 * Users: whoever waits for a sandbox or works in it links a struct
 * sandbox_user, and is told the end (once, already unlinked).
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/agent_client.h"
#include "daemon/held.h"
#include "daemon/ids.h"
#include "daemon/owner.h"
#include "daemon/turns.h"
#include "daemon/vmm_client.h"
#include "lib/list.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct daemon;
struct egress_sandbox;
struct grant;
struct probe;
struct sandbox;
struct sandbox_user;
struct template_vm;

enum sandbox_state { SANDBOX_FORKING, SANDBOX_READY, SANDBOX_ENDED };

typedef void sandbox_user_fn(struct sandbox_user *u, const char *reason);
typedef void sandbox_ready_fn(struct sandbox *sb, void *arg);

struct sandbox_user {
	struct list link;
	sandbox_user_fn *fn;
	void *arg;
};

struct sandbox_params {
	struct vmm *from; /* the VM to fork */
	const char *template;
	const char *owner; /* NULL: set later, or nobody's */
	uint32_t memory_mib, vcpus, disk_mib;
	const struct sandbox *parent; /* NULL: from is a template's */
	json_t *metadata;             /* borrowed; NULL: set later */
	struct grant *grant;          /* of egress, borrowed; NULL: none */
	bool reseed;
	bool pool;      /* does not count against the limit, until sandbox_count() */
	bool hold;      /* it is not renewed before sandbox_go() */
	bool rehearsal; /* its template learns from it (rehearsal.h) */
	bool forkable;  /* false: its VM gives up what forks take before its guest runs */
};

struct sandbox {
	struct list link; /* registry; first: overwritten when freed */
	struct daemon *d;
	char id[SANDBOX_ID_LEN + 1];
	char parent[SANDBOX_ID_LEN + 1]; /* "" = a template's child */
	char root[SANDBOX_ID_LEN + 1];   /* the first of its line: the same in all its relatives */
	char template[64];
	char owner[OWNER_LEN + 1]; /* the same in all its relatives */
	uint32_t memory_mib, vcpus, disk_mib, generation;
	json_t *metadata;
	int64_t created_ms;
	uint64_t start_ns, exec_count, disk_errors;
	uint64_t ready_us; /* from the request to ready */
	bool from_pool, reseed, hold, rehearsal, forkable;
	bool called; /* something was run in it since it was made or forked */

	enum sandbox_state state;
	char reason[1400]; /* of the end */
	bool forked, prepared, renewed, announced, stored, counted;
	bool closed;      /* it was ended at a client's wish */
	struct vmm *from; /* until sandbox_start() */
	struct vmm vmm;
	struct agent agent;
	struct turn turn; /* to be renewed */
	struct agent_stream *renew;
	struct egress_sandbox *egress; /* NULL: it never had a grant (egress/egress.h) */
	struct loop_timer deadline;
	struct probe *probe;
	struct command_watch *watch; /* NULL: no kept command has had a timeout (command_watch.h) */

	struct list users;   /* told the end */
	struct list waiting; /* told when the VMM is gone */
	struct list execs;   /* queued and running, by arrival (exec.c) */
	struct list past;    /* ids of ended ones (exec_control.c) */
	unsigned int nexecs, npast;
	struct held held;  /* for its execs */
	struct list forks; /* the one under way first, then by arrival (fork.c) */

	sandbox_ready_fn *on_ready;
	sandbox_ready_fn *on_forked; /* its parent has told of it; may be NULL */
	/* Answer to vmm_record(); of a rehearsal. */
	void (*on_recorded)(struct sandbox *sb, void *arg, int errnum, const char *text);
	void *ready_arg;
};

struct sandbox_params sandbox_params_of_template(struct template_vm *vm);

/*
 * Makes the object; unless p->pool the caller has reserved a place in the
 * registry, which is the sandbox's from here on. NULL: no memory, and the place is
 * still the caller's. on_ready comes once it is READY; its end before that goes to
 * the users, who link themselves between the two calls. sandbox_start() may end it.
 */
struct sandbox *sandbox_new(struct daemon *d, const struct sandbox_params *p,
			    sandbox_ready_fn *on_ready, void *arg);
void sandbox_start(struct sandbox *sb);
/* Its parent has told of it (on_forked): one that was held is renewed now. It may end. */
void sandbox_go(struct sandbox *sb);

/* A call begins: what the first one writes to is made ready. */
void sandbox_begin_call(struct sandbox *sb);
/*
 * It has copies now, and goes on: what it writes to is shared with them from here on, and made
 * ready as in a copy, what the agent needs at once and the rest with the next call.
 */
void sandbox_was_forked(struct sandbox *sb);

/* One of the pool takes a place in the registry that was reserved for it, and has an owner. */
void sandbox_count(struct sandbox *sb, const char *owner);
/* Clients may know its id: it is written to the database. 0, or -EIO: it was ended. */
__must_check int sandbox_announce(struct sandbox *sb);

/* Ends it. Harmless when it has ended. deleted: at the client's wish. */
void sandbox_end(struct sandbox *sb, bool deleted, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

void sandbox_add_user(struct sandbox *sb, struct sandbox_user *u, sandbox_user_fn *fn, void *arg);
/* Told when the process of an ended sandbox is gone. */
void sandbox_add_waiting(struct sandbox *sb, struct sandbox_user *u, sandbox_user_fn *fn,
			 void *arg);
/* Not to be told any more. Harmless when not linked. */
void sandbox_drop_user(struct sandbox_user *u);

/*
 * A stream of this sandbox broke. True when the VM has ended or is ending: the
 * user will be told (or was); false: only the stream is lost.
 */
bool sandbox_is_ending(struct sandbox *sb);

/* The object of the API. New reference, NULL without memory. */
json_t *sandbox_json(const struct sandbox *sb, bool details);
