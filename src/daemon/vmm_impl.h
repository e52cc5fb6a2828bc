/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files behind vmm_client.h share: vmm_client.c (messages and boot),
 * vmm_proc.c (processes), vmm_fork.c (forks), vmm_claim.c (whose a process is), vmm_guest.c
 * (connections that the guest opens), strays.c (processes that nobody has told of), vmm_group.c
 * (control groups), console.c (the ring). Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/vmm_client.h"

/* All members but ops; nothing is held yet. */
void vmm_init(struct vmm *v, struct vmm_host *h);
/* Socket pair for the control messages, console ring. On failure nothing is left open. */
int vmm_make_ends(struct vmm *v, int *ctl, int *peer, struct err *err);

/* Its end, once: the owner is told, children that were not told of end with it. */
void vmm_end(struct vmm *v, const char *reason);
/* The control socket is of no use any more; the process must go. */
void vmm_close_ctl(struct vmm *v);

/* To where it is, without waiting: -ENOTCONN when it is gone; as ctl_send(). */
__must_check int vmm_send(struct vmm *v, const struct ctl_msg *m, const int *fds);
/* Whether it has read the message that was the sent-th, as far as the kernel tells. */
bool vmm_has_read(const struct vmm *v, uint64_t sent);
/* What one message that lies in a socket counts for there; 0: that cannot be told. */
int vmm_message_cost(void);

/* Sends CTL_BOOT. */
int vmm_boot(struct vmm *v, const struct vmm_params *p, int ctl, struct err *err);

/* It broke the protocol, as the text says: it is killed, and nothing of it is read any more. */
void vmm_breach(struct vmm *v, const char *text);

/* It has answered none of the forks that may be asked for at a time: v->deaf. */
void vmm_on_deaf(struct loop_timer *t);

/* Makes one clean line of what a VMM or guest wrote. */
void vmm_clean_line(char *s);

/* Starts the program with ctl_peer as its control socket. -errno. */
__must_check int vmm_spawn(struct vmm *v, const char *id, int ctl_peer);
/* Without a supervisor the process must not stay: kills and waits. */
void vmm_abandon(struct vmm *v);
/* From here on ops->reaped() comes when the process of v->pid ends. */
__must_check int vmm_watch(struct vmm *v, int pidfd, struct err *err);
/* There is no process and none will come: ops->reaped() from the loop. */
void vmm_no_process(struct vmm *v);
/*
 * The process that a VMM (process by) says it has made: a descriptor of it when it is a
 * child of ours that no struct vmm has, and that this VMM has not told of before.
 * -ESRCH: it has ended; -EPERM: a lie.
 */
int vmm_prove_child(struct vmm_host *h, pid_t by, uint64_t pid);
/* The one that has this process, or NULL. */
struct vmm *vmm_by_pid(struct vmm_host *h, pid_t pid);

/* The first message on its control socket is awaited, to tell whose it is. */
void vmm_claim_listen(struct vmm *v);
/* While v->listening, ahead of each message: v may have got its process by it, or have ended.
 * False: there is no message yet, and none may be read. */
bool vmm_claim_hear(struct vmm *v);
/* Its parent, process by, says that it is this process (pidfd is taken over): it is, as soon as it
 * says so itself.
 */
void vmm_claim(struct vmm *v, pid_t by, pid_t pid, int pidfd);
/* Whether process by has said already that another child of its own is this process. */
bool vmm_claim_twice(struct vmm_host *h, pid_t by, pid_t pid);
/* The process is v's: it has ended, and nobody else has it. */
void vmm_claim_take(struct vmm *v);
/* Who waits for a word of this process, or NULL. */
struct vmm *vmm_claim_by_pid(struct vmm_host *h, pid_t pid);
/* It waits for none any more. */
void vmm_claim_drop(struct vmm *v);

void strays_init(struct vmm_host *h);
/* A VMM has ended: it is looked soon whether it has left something behind. */
void strays_soon(struct vmm_host *h);
/* There is a VMM: while there is, it is looked every few seconds. */
void strays_watch(struct vmm_host *h);
/* Its fork is asked for now. */
void strays_asked(struct vmm *v);
/* One has ended and was reaped; a line a second at most. */
void strays_log(struct vmm_host *h, pid_t pid);

/* CTL_GUEST_CONNECT. False: it broke the protocol. */
bool vmm_on_guest_connect(struct vmm *v, const struct ctl_msg *m);
/* There is room in its socket: what did not fit. */
void vmm_guest_flush(struct vmm *v);

/* CTL_FORKED */
void vmm_on_forked(struct vmm *v, struct ctl_msg *m);
/* A process has been reaped that is nobody's. */
void vmm_fork_reaped(struct vmm_host *h, pid_t pid);
/* Children that were not told of end. reason: the parent's, or NULL. */
void vmm_end_forks(struct vmm *v, const char *reason);
/* Takes it out of its parent's queue and ends it. */
void vmm_fork_failed(struct vmm *v, const char *reason);
/* The child is out of its parent's queue. */
void vmm_leave_parent(struct vmm *v);
/* As many requests as may be in flight; there is room for more. */
void vmm_pump_forks(struct vmm *parent);

/* Where the host has them: its own group, before there is a process. */
int vmm_group_make(struct vmm *v, const struct vm_size *size, struct vmm *parent, struct err *err);
/* The process is gone, or will not come. */
void vmm_group_leave(struct vmm *v);
/* The child's end of its gate, which opens when the child is in its group. -errno. */
__must_check int vmm_gate(struct vmm *v, int *theirs);
/* The process is there and watched: into its group, and then it may begin. */
void vmm_group_join(struct vmm *v);
/* The host has killed it for want of memory: the sentence. */
bool vmm_oom_text(const struct vmm *v, char *out, size_t len);
