/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host gives to a daemon: clock, processes, database.
 */
#define _GNU_SOURCE
#include "daemon_rig.h"

#include "daemon/child.h"
#include "daemon/limits.h"
#include "daemon/egress/grant.h"
#include "daemon/store.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIRST_PID 100000u
#define PROCESSES 64u
/* What is opened gets the lowest number that is free: none of an input has a higher one. */
#define DESCRIPTORS 512

static uint64_t now_ns = SECOND_NS;

/* --- clock and processes ------------------------------------------------------------------ */

static struct rig *rig;
static uint32_t youngest;

static struct {
	bool there, ended;
	bool known; /* some VMM of the daemon has it */
	unsigned family;
	int fd; /* of whoever watches it; -1 */
} process[PROCESSES];

uint64_t __wrap_io_now_ns(void);
int __wrap_pidfd_open(pid_t pid, unsigned int flags);
int __wrap_pidfd_send_signal(int fd, int sig, siginfo_t *si, unsigned int flags);
int __wrap_waitid(idtype_t type, id_t id, siginfo_t *si, int options);
int __real_fdpass_peek_pid(int sock, pid_t *pid);
int __wrap_fdpass_peek_pid(int sock, pid_t *pid);

uint64_t __wrap_io_now_ns(void)
{
	return now_ns;
}

void rig_surroundings_reset(struct rig *g)
{
	rig = g;
	now_ns = SECOND_NS;
	memset(process, 0, sizeof(process));
}

void rig_clock_forward(uint64_t ns)
{
	now_ns += ns;
}

uint32_t rig_new_process(unsigned family)
{
	for (uint32_t i = 0; i < PROCESSES; i++)
		if (!process[i].there) {
			process[i].there = true;
			process[i].ended = process[i].known = false;
			process[i].family = family;
			process[i].fd = -1;
			youngest = FIRST_PID + i;
			return youngest;
		}
	return 1; /* nobody's */
}

uint32_t rig_youngest_process(void)
{
	return youngest;
}

void rig_process_ends(uint32_t pid)
{
	uint64_t one = 1;
	uint32_t i = pid - FIRST_PID;

	if (i >= PROCESSES || !process[i].there || process[i].ended)
		return;
	process[i].ended = true;
	if (process[i].fd >= 0)
		(void)!write(process[i].fd, &one, sizeof(one));
}

int __wrap_pidfd_open(pid_t pid, unsigned int flags)
{
	uint32_t i = (uint32_t)pid - FIRST_PID;

	(void)flags;
	if (i >= PROCESSES || !process[i].there) {
		errno = ESRCH;
		return -1;
	}
	process[i].fd = eventfd(process[i].ended, EFD_CLOEXEC | EFD_NONBLOCK);
	return process[i].fd;
}

static uint32_t by_fd(int fd)
{
	uint32_t i = 0;

	while (i < PROCESSES && !(process[i].there && process[i].fd == fd))
		i++;
	return i;
}

int __wrap_pidfd_send_signal(int fd, int sig, siginfo_t *si, unsigned int flags)
{
	uint32_t i = by_fd(fd);

	(void)si;
	(void)flags;
	MUST(sig == SIGKILL);
	if (i < PROCESSES)
		rig_process_ends(FIRST_PID + i);
	return 0;
}

int __wrap_waitid(idtype_t type, id_t id, siginfo_t *si, int options)
{
	uint32_t i = type == P_PIDFD ? by_fd((int)id) : PROCESSES;

	memset(si, 0, sizeof(*si));
	if (i == PROCESSES) {
		errno = ECHILD;
		return -1;
	}
	if (!process[i].ended)
		return 0;
	si->si_pid = (pid_t)(FIRST_PID + i);
	si->si_code = CLD_KILLED;
	si->si_status = SIGKILL;
	if (!(options & WNOWAIT))
		process[i].there = false;
	return 0;
}

/* The process of the VMM that the other end of this socket was given to, for a child; 0: that has
 * been told of something else, and nobody takes this word for anything. */
static pid_t holder_of(int sock)
{
	list_for_each (v, &rig->d.vmms.claims, struct vmm, link)
		if (v->ctl.fd == sock)
			return v->claim_by;
	list_for_each (v, &rig->d.vmms.vmms, struct vmm, link)
		list_for_each (child, &v->forks, struct vmm, fork_link)
			if (child->ctl.fd == sock)
				return v->pid;
	return 0;
}

static bool is_of(uint32_t i, unsigned family)
{
	return i < PROCESSES && process[i].there && process[i].family == family;
}

/*
 * Who speaks says so in CTL_HERE; of other messages it is the youngest process. The kernel tells
 * whose they are, so it is one that can have the socket: of the family that it was given to.
 */
int __wrap_fdpass_peek_pid(int sock, pid_t *pid)
{
	uint32_t i = PROCESSES, holder;
	int rc = __real_fdpass_peek_pid(sock, pid);
	uint8_t raw[CTL_WIRE_SIZE];
	struct ctl_msg m;

	if (rc != 1)
		return rc;
	holder = (uint32_t)holder_of(sock) - FIRST_PID;
	if (holder >= PROCESSES) {
		*pid = (pid_t)youngest;
		return 1;
	}
	while (i && !is_of(i - 1, process[holder].family))
		i--;
	if (recv(sock, raw, sizeof(raw), MSG_PEEK | MSG_DONTWAIT) == (ssize_t)sizeof(raw) &&
	    ctl_unpack(raw, &m) == 0 && m.type == CTL_HERE &&
	    is_of((uint32_t)(m.value[0] % PROCESSES), process[holder].family))
		i = 1 + (uint32_t)(m.value[0] % PROCESSES);
	*pid = i ? (pid_t)(FIRST_PID + i - 1) : -1;
	return 1;
}

/* One that has ended can be anybody's: it is nothing that could be harmed. */
void rig_check_processes(void)
{
	bool seen[PROCESSES] = {0};

	list_for_each (v, &rig->d.vmms.vmms, struct vmm, link) {
		uint32_t i = (uint32_t)v->pid - FIRST_PID, by = (uint32_t)v->claim_by - FIRST_PID;

		if (i >= PROCESSES || !process[i].there)
			continue;
		MUST(!seen[i]);
		seen[i] = true;
		if (v->claim_by && !process[i].known && !process[i].ended)
			MUST(by < PROCESSES && process[i].family == process[by].family);
		process[i].known = true;
	}
}

unsigned rig_descriptors(void)
{
	struct pollfd p[DESCRIPTORS];
	unsigned n = 0;

	for (int i = 0; i < DESCRIPTORS; i++)
		p[i] = (struct pollfd){.fd = i};
	MUST(poll(p, DESCRIPTORS, 0) >= 0);
	for (int i = 0; i < DESCRIPTORS; i++)
		n += !(p[i].revents & POLLNVAL);
	return n;
}

void rig_here(struct rig *g, unsigned vmm, uint32_t pid)
{
	struct ctl_msg m = {.type = CTL_HERE};

	m.value[0] = pid - FIRST_PID;
	rig_message(g, vmm, &m);
}

/* Programs cannot be started here. */
int child_spawn(pid_t *pid, const char *program, const char *name, const char *arg,
		const char *option, int peer, const struct child_env *env)
{
	(void)pid;
	(void)program;
	(void)name;
	(void)arg;
	(void)option;
	(void)peer;
	(void)env;
	return -ENOENT;
}

void child_abandon(pid_t pid)
{
	rig_process_ends((uint32_t)pid);
}

/* --- database ----------------------------------------------------------------------------- */

int store_insert(struct store *s, const struct store_row *row)
{
	(void)s;
	MUST(row->id[0] && row->template[0]);
	return 0;
}

void store_end(struct store *s, const char *id, int64_t ended_ms, uint64_t exec_count,
	       const char *reason, bool deleted)
{
	(void)s;
	(void)ended_ms;
	(void)exec_count;
	(void)deleted;
	MUST(id[0] && reason[0]);
}

void store_egress(struct store *s, const char *id, const struct grant *g)
{
	(void)s;
	(void)id;
	MUST(!g || json_is_array(g->allow));
}

void store_delete(struct store *s, const char *id)
{
	(void)s;
	(void)id;
}

int store_merge(struct store *s, const struct store_row *row, const char *winner, int64_t now_ms)
{
	(void)s;
	(void)now_ms;
	MUST(row->id[0] && winner[0]);
	return 0;
}

int store_find(struct store *s, const char *id, const char *owner, struct store_row *row)
{
	(void)s;
	(void)id;
	(void)owner;
	(void)row;
	return 0;
}

int store_details(struct store *s, struct store_row *row)
{
	(void)s;
	(void)row;
	return 0;
}

void store_row_free(struct store_row *row)
{
	(void)row;
}
