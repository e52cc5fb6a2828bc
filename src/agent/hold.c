/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is to stand still, and who does. A stop that nobody asked for is the user's own and is left
 * alone; one that was asked for and comes too late, at any time after, is undone.
 */
#define _GNU_SOURCE
#include "agent/hold.h"
#include "agent/agent.h"
#include "agent/renew.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HOLD_FILE "hold"
/* guest/repl/renew.py: to look at both files; to renew the generators first of all, in a copy. */
#define HOLD_SIGNAL (SIGRTMIN + 1)
#define HOLD_SEED   (SIGRTMIN + 2)

/* To the main thread: in Python only that one runs handlers. */
static int hold_send(const struct repl *r, int sig)
{
	return syscall(SYS_tgkill, r->pid, r->pid, sig) < 0 ? -errno : 0;
}

int hold_signal(const struct repl *r)
{
	return hold_send(r, HOLD_SIGNAL);
}

int hold_renew(struct repl *r, bool reseed)
{
	bool comes = r->stands || r->to_stand; /* the handler has run, or will */
	int rc = reseed || !comes ? hold_send(r, comes ? HOLD_SEED : HOLD_SIGNAL) : 0;

	hold_release(r);
	return rc;
}

/* Threads of a process: the links of their directory are two more. */
static bool hold_has_threads(pid_t pid)
{
	struct stat st;
	char path[48];

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	return stat(path, &st) == 0 && st.st_nlink > 3;
}

/* A session that can do its renewal before the next cell has no code of the user's that runs. */
static bool hold_needed(const struct repl *r)
{
	return repl_can_renew(r) && !repl_can_defer(r) && hold_has_threads(r->pid);
}

static bool hold_awaited(const struct agent *a)
{
	list_for_each (r, &a->contexts, struct repl, link)
		if (r->to_stand)
			return true;
	return false;
}

bool hold_begin(struct agent *a)
{
	bool any = false;

	list_for_each (r, &a->contexts, struct repl, link) {
		if (!hold_needed(r))
			continue;
		/* Without the file it would not stop; without the signal neither. */
		if (!any && renew_write(a->renewal.run_dir, HOLD_FILE, "") < 0)
			return false;
		any = true;
		r->to_stand = hold_signal(r) == 0;
	}
	return any && hold_awaited(a);
}

void hold_end(struct agent *a)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/" HOLD_FILE, a->renewal.run_dir);
	unlink(path);
}

void hold_on_stopped(struct reap_child *c)
{
	struct repl *r = c->arg;
	enum freeze_state state = r->agent->freezer.state;

	if (!r->to_stand)
		return;
	r->to_stand = false;
	r->stands = state == FREEZE_HOLDING || state == FREEZE_WAITING;
	if (!r->stands)
		kill(r->pid, SIGCONT);
	else if (state == FREEZE_HOLDING && !hold_awaited(r->agent))
		freeze_held(&r->agent->freezer);
}

void hold_forget(struct repl *r)
{
	bool awaited = r->to_stand;

	r->to_stand = r->stands = false;
	if (awaited && r->agent->freezer.state == FREEZE_HOLDING && !hold_awaited(r->agent))
		freeze_held(&r->agent->freezer);
}

void hold_release(struct repl *r)
{
	if (r->stands && r->pid)
		kill(r->pid, SIGCONT);
	r->stands = false;
}
