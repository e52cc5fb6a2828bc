/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VMM process seen from the daemon: starting or forking it, the control
 * messages, its console ring, and noticing its end. Everything that comes from
 * it is checked: a VMM may have been taken over by its guest.
 *
 * Life of a booted one: vmm_start() -> callbacks -> ops->ended(reason) once ->
 * ops->reaped() once, last. Of a forked one: vmm_fork() -> ops->asked() when
 * the request is on its way (perhaps inside the call) -> ops->forked() when the
 * process is known to be ours -> as above. vmm_kill() may be called at any time
 * and is followed by both (ended is left out when the caller said so). After a
 * failed vmm_start() or vmm_fork() nothing is left and no callback comes.
 *
 * A child is made by its parent's VMM and becomes a child process of the daemon
 * (CLONE_PARENT). Its control socket exists from vmm_fork() on: what is sent
 * there waits for it. Where there are control groups, it waits itself until it is in its own. When
 * the parent ends before it has told of a child, the child ends as well; one that was told of lives
 * on alone.
 *
 * Thread: the loop's. fork: posix_spawn; the process gets the control socket
 * as descriptor CTL_FD, /dev/null as 0 and 1, stderr as 2, an empty
 * environment, and nothing else.
 */
#pragma once

#include "daemon/child.h"
#include "daemon/limits.h"
#include "daemon/owner.h"
#include "daemon/vm_group.h"
#include "lib/err.h"
#include "lib/list.h"
#include "lib/loop.h"
#include "proto/control.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct vmm;

/* Members may be NULL, but for ended and reaped. */
struct vmm_ops {
	void (*status)(struct vmm *v, uint32_t code); /* the guest wrote to its status port */
	void (*refused)(struct vmm *v, uint32_t id, int errnum); /* a stream of vmm_connect() */
	void (*asked)(struct vmm *v);  /* the parent has been asked: streams may be opened */
	void (*forked)(struct vmm *v); /* the process is there */
	void (*paused)(struct vmm *v, int errnum, const char *text); /* answer to vmm_pause() */
	/* Answers to vmm_record() and vmm_learn(); pages: by enum ctl_hotset. */
	void (*recorded)(struct vmm *v, int errnum, const char *text);
	void (*learned)(struct vmm *v, int errnum, const char *text, const uint64_t *pages);
	void (*disk)(struct vmm *v, int errnum, uint64_t failures); /* the host failed its disk */
	/* The guest opens a connection: vmm_accept() or vmm_reject() answers. NULL: all rejected.
	 */
	void (*guest_connect)(struct vmm *v, uint32_t id);
	void (*ended)(struct vmm *v, const char *reason); /* it will do nothing any more */
	void (*reaped)(struct vmm *v); /* the process is gone; v may be freed (deferred) */
};

/* Children of the daemon, by pid (strays.c). */
struct stray {
	pid_t pid;
	bool known;
	uint64_t began; /* 0: it is not told */
};

struct strays {
	struct stray *c;
	size_t n, room;
};

/* What all VMMs of a daemon have in common. */
struct vmm_host {
	struct loop *loop;
	const char *vmm_path, *kvm_path, *disk_dir;
	struct child_env child;
	bool without_namespaces; /* what a VMM is told: it may do without where it gets none */
	struct list vmms;        /* those that have a process */
	struct list claims;      /* those whose process has not spoken yet (vmm_claim.c) */
	struct cgroups *groups;  /* every VMM gets one; NULL: none does */
	bool reap_again;         /* what has ended is being moved to its group */
	bool several_owners;     /* none may have all forks of a template that are under way */
	/* strays.c */
	struct loop_timer sweep;
	uint64_t sweep_ns, began_ticks, stray_logged_ns;
	unsigned int strays_unlogged;
	struct strays before; /* the daemon */
	bool no_sweep;        /* it cannot be told what is a VMM's */
	int message_cost;     /* of a control message that was not read, by SIOCOUTQ; 0: ? */
	/*
	 * Children of the daemon that are not VMMs: whether one is, and to reap it. False: it
	 * cannot be yet, and vmm_host_reap_again() comes when it can. A VMM must not be able to
	 * call one its own child. NULL: there are none.
	 */
	bool (*others_own)(void *others, pid_t pid);
	bool (*others_reap)(void *others, pid_t pid);
	void *others;
};

struct vmm_params {
	const char *id;
	int kernel_fd, initramfs_fd, root_fd;
	uint32_t memory_mib, vcpus, disk_mib;
};

/* A request to fork that was not answered. */
struct vmm_ask {
	uint32_t id;
	uint64_t sent;             /* vmm->sent when it was */
	char owner[OWNER_LEN + 1]; /* of the child */
	bool given_up;             /* the child is not wanted any more */
};

/* When an owner was asked for a child last. */
struct vmm_served {
	char owner[OWNER_LEN + 1];
	uint64_t sent; /* vmm->sent; 0: no owner */
};

/* A child that was given up, and has a process: that ends by itself. */
struct vmm_leaver {
	pid_t pid;
	char owner[OWNER_LEN + 1];
};

struct vmm {
	struct vmm_host *host;
	const struct vmm_ops *ops;
	const char *owner; /* whose it will be, set like ops; NULL: nobody's yet */
	pid_t pid;         /* 0: none (yet) */
	struct list link;  /* host->vmms, or host->claims */
	struct loop_src ctl, proc;
	int console_fd;
	uint32_t next_id;
	uint64_t sent; /* messages */
	bool ended;    /* ops->ended was called, or is not wanted */
	bool gone;     /* ops->reaped comes, or has come */

	/* vmm_guest.c: what did not fit into its socket. */
	bool egress, egress_unsent;
	uint32_t rejects[LIMIT_GUEST_CONNECTS];
	unsigned int nrejects;
	struct loop_timer exit_timer;

	struct list forks; /* children that were not told of yet, by arrival */
	struct vmm_ask asks[LIMIT_FORKS_IN_FLIGHT];
	unsigned int in_flight;                          /* of asks */
	struct vmm_served served[LIMIT_FORKS_IN_FLIGHT]; /* lately, of different owners */
	struct vmm_leaver leavers[LIMIT_FORKS_IN_FLIGHT];
	unsigned int nleavers;
	struct loop_timer
		deaf; /* no more may be asked until it answers one of them; or one waits */
	bool mute;    /* that has lasted too long */

	struct vmm *parent;    /* until told of */
	struct list fork_link; /* parent->forks */
	uint32_t fork_id;      /* of the request; 0 = not sent */
	uint64_t asked_ticks;  /* when that was (strays.c) */
	enum ctl_fork_kind kind;
	int peer_fd; /* the child's end of its control socket, until sent */

	/* vmm_claim.c */
	bool listening; /* for its first message */
	pid_t speaker;  /* who has sent that; 0: nobody yet */
	pid_t claim;    /* what its parent has told */
	pid_t claim_by; /* that parent */
	int claim_fd;   /* of that process, until it has spoken; -1 */

	/* vmm_group.c */
	struct vm_group *group; /* NULL: none, or left */
	struct vm_size size;
	struct vmm_params boot; /* while booting: what it will be told */
	bool moving, booting;
	bool paused; /* a template */
	int gate_fd; /* of a child that waits; -1 */
};

void vmm_host_init(struct vmm_host *h, struct loop *loop, const char *vmm_path,
		   const char *kvm_path, const char *disk_dir);

/*
 * SIGCHLD: reaps what has ended, a process that belongs to no struct vmm
 * included (a VMM may fork and end before it tells).
 */
void vmm_host_reap(struct vmm_host *h);
/* What could not be reaped, and all behind it, may be by now. */
void vmm_host_reap_again(struct vmm_host *h);

/*
 * Kills child processes of ours that no struct vmm has and no VMM may have yet to tell of: what one
 * that was taken over has made. It is done by itself some moments after the end of each VMM. How
 * many there were that are nobody's; those that were killed are reaped like all others.
 */
unsigned int vmm_host_sweep(struct vmm_host *h);
/* It is not looked any more. */
void vmm_host_stop(struct vmm_host *h);

/* v->ops is set by the caller before, here and in vmm_fork(). */
int vmm_start(struct vmm *v, struct vmm_host *h, const struct vmm_params *p, struct err *err);
/* Of a leaf there is no fork, and it cannot be paused: that is refused by its VMM. */
int vmm_fork(struct vmm *v, struct vmm *parent, enum ctl_fork_kind kind, struct err *err);

/* Stops it for good, as a template; ops->paused() follows. 0 or -errno. */
int vmm_pause(struct vmm *v);

/* To a rehearsal: what it has written by now is that set. Then, to its parent: learn. 0 or -errno.
 */
int vmm_record(struct vmm *v, enum ctl_hotset set);
int vmm_learn(struct vmm *v);
/* It is about to write the pages of that set. */
void vmm_warm(struct vmm *v, enum ctl_hotset set);

/* Asks for a stream to a port of the guest; fd stays the caller's. Its id, or -errno. */
int64_t vmm_connect(struct vmm *v, uint32_t port, int fd);

/*
 * Whether the guest may open connections to its egress port; not at boot, nor after a fork. What
 * its socket has no room for is told as soon as it has.
 */
void vmm_egress(struct vmm *v, bool on);
/* Answers to ops->guest_connect. fd stays the caller's. 0, or -errno: it is not accepted, and not
 * rejected either. */
__must_check int vmm_accept(struct vmm *v, uint32_t id, int fd);
void vmm_reject(struct vmm *v, uint32_t id);

/* Looks at once whether it has ended: streams of a dead VMM close before the loop hears of its end.
 */
void vmm_poll(struct vmm *v);

/* SIGKILL. quiet: ops->ended is not wanted any more. */
void vmm_kill(struct vmm *v, bool quiet);

/*
 * The end of the guest's console as clean text (printable ASCII and newlines):
 * at most max_lines lines and len - 1 bytes. "" when there is none.
 */
void vmm_console_tail(const struct vmm *v, char *out, size_t len, unsigned int max_lines);

/* The bytes that the console ring holds, as they are: a new buffer and its length. NULL: no memory.
 */
char *vmm_console_copy(const struct vmm *v, size_t *len);
