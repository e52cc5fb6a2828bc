/* SPDX-License-Identifier: Apache-2.0 */
/*
 * podflared without its sockets, its database and its processes, for targets that reach it from
 * one of its three sides: requests, control messages of VMMs, frames of agents. All of src/daemon
 * is real but http.c, http_conn.c, store.c and child.c, which the rig plays, and so it does with
 * the clock and with the calls about processes (meson.build: daemon_rig_plays).
 *
 * There are two sandboxes that are ready, and a template that they might have been forked from.
 * Whatever is asked of their VMMs waits in the rig: streams to agents come out as descriptors of
 * the other end.
 *
 * Checked at all times: a request gets one answer, in time or, of files, when its sandbox ends;
 * JSON is JSON, an error says what and why, and never that the daemon is at fault; events are
 * numbered, and end with the exit; what agents are sent is well-formed; no VMM has a process that
 * others made; and at the end as many descriptors are open as at the beginning.
 */
#pragma once

#include "input.h"

#include "daemon/daemon.h"
#include "daemon/sandbox.h"
#include "proto/frame.h"

#define RIG_SANDBOXES 2u
#define RIG_VMMS                                                                        \
	24u /* control sockets; 0: the template's, then the sandboxes', then children's \
	     */
#define RIG_AGENTS 24u
#define RIG_CALLS  12u
#define RIG_OWNER  "" /* who asks, and whose the sandboxes are */

struct rig_vmm {
	int fd;           /* -1: none */
	unsigned family;  /* index of the first VMM that it descends from */
	uint32_t fork_id; /* the last that it was asked for; 0: none */
	uint32_t child;   /* its index in rig.vmm */
};

struct rig_agent {
	int fd; /* -1: none */
	struct frame_reader in;
};

struct rig_call {
	struct request r; /* first */
	bool there, ended;
	bool begins;       /* the daemon is about to take it */
	const char *range; /* header */
	unsigned status;
	bool stream, lines, exited, upgrade;
	bool events;  /* its lines are those of a command */
	int64_t size; /* of a stream, or -1 */
	uint64_t pulled, seq;
	struct buf out;
	int socket, peer; /* after an upgrade: the daemon's and the client's; -1 */
	bool stalled;     /* the client takes nothing */
};

struct rig {
	struct daemon d;
	struct sandbox *sb[RIG_SANDBOXES]; /* may be gone: see rig_sandbox() */
	struct rig_vmm vmm[RIG_VMMS];
	struct rig_agent agent[RIG_AGENTS];
	unsigned nagents;
	struct rig_call call[RIG_CALLS];
	char id[RIG_SANDBOXES][SANDBOX_ID_LEN + 1];
	struct template_vm *tvm;
	unsigned descriptors; /* that were open before */
};

void rig_init(struct rig *g);
/* Everybody leaves, everything ends; whatever is left is a find. */
void rig_free(struct rig *g);

/* A request; query may be NULL. NULL: there is no room for one more. */
struct rig_call *rig_request(struct rig *g, const char *method, const char *path, const char *query,
			     const void *body, size_t len);
/* The client is gone. */
void rig_leave(struct rig_call *c);

/* Control messages are taken, the loop runs, answers are read. */
void rig_turn(struct rig *g);
/* Time passes. */
void rig_wait(struct rig *g, uint64_t ns);

void rig_frame(struct rig *g, unsigned agent, uint8_t type, const void *payload, size_t len);
void rig_bytes(struct rig *g, unsigned agent, const void *data, size_t len);
void rig_hang_up(struct rig *g, unsigned agent);
/* By a VMM; -1 hangs up. */
void rig_message(struct rig *g, unsigned vmm, const struct ctl_msg *m);
void rig_vmm_gone(struct rig *g, unsigned vmm);

/* CTL_HERE on the socket of a new VMM, sent by this process. */
void rig_here(struct rig *g, unsigned vmm, uint32_t pid);
/* A process that is a child of ours, for CTL_FORKED, made by a VMM of that family; it ends by
 * itself. */
uint32_t rig_new_process(unsigned family);
/* The last one that was made. */
uint32_t rig_youngest_process(void);
void rig_process_ends(uint32_t pid);

/* --- between the rig's files -------------------------------------------------------------- */

/* Clock and processes as at the start of an input; and some time later. */
void rig_surroundings_reset(struct rig *g);
void rig_clock_forward(uint64_t ns);
/* Each VMM of the daemon has a process of its own, which its family made. */
void rig_check_processes(void);
/* How many descriptors are open. */
unsigned rig_descriptors(void);
/* Takes what there is of an answer; a request that has it all is over. */
void rig_serve(struct rig_call *c);
