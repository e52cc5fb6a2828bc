/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jail: limits, root, user, Landlock, seccomp, in this order, as each step takes
 * away what the one before it needed.
 */
#define _GNU_SOURCE
#include "egress/jail.h"

#include "egress/jail_filter.h"
#include "lib/caps.h"
#include "lib/emptyroot.h"
#include "lib/landlock.h"
#include "lib/log.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

/*
 * 256 connections (EGRESS_STREAMS_MAX): the guest's, two to the HTTP library, one to a destination,
 * and one that is kept of another.
 */
#define JAIL_FILES  2048u
#define JAIL_NOBODY 65534u /* where the host's files do not say it */
#define JAIL_DATA   (512ull << 20)

int jail_find_user(const char *name, struct jail_user *out, struct err *err)
{
	char *end;
	unsigned long n = strtoul(name, &end, 10);
	struct passwd *pw;

	if (*name >= '0' && *name <= '9' && *end == '\0' && n > 0 && n < UINT32_MAX) {
		*out = (struct jail_user){(uid_t)n, (gid_t)n};
		return 0;
	}
	errno = 0;
	pw = getpwnam(name);
	if (!pw && strcmp(name, "nobody") == 0) {
		*out = (struct jail_user){JAIL_NOBODY, JAIL_NOBODY};
		return 0;
	}
	if (!pw)
		return err_text(err, ENOENT, "there is no user \"%s\"", name);
	if (pw->pw_uid == 0)
		return err_text(err, EINVAL, "the user \"%s\" is root", name);
	*out = (struct jail_user){pw->pw_uid, pw->pw_gid};
	return 0;
}

/* A limit that is lower already stays. */
static void jail_limit(int what, rlim_t value)
{
	struct rlimit r;

	if (getrlimit(what, &r) < 0)
		return;
	r.rlim_max = r.rlim_max < value ? r.rlim_max : value;
	r.rlim_cur = r.rlim_max;
	setrlimit(what, &r);
}

/*
 * An empty root, read-only, in a mount namespace of our own. A host may forbid it, and then the
 * rest has to do, which its log says. As an ordinary user it takes a user namespace.
 */
static void jail_empty_root(void)
{
	const int spaces = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS;
	int rc = unshare(geteuid() == 0 ? spaces : spaces | CLONE_NEWUSER) < 0
			 ? -errno
			 : emptyroot_enter("egress");

	if (rc < 0)
		log_warn("no root directory of its own for this proxy: %s", strerror(-rc));
}

static int jail_change_user(const struct jail_user *user, struct err *err)
{
	if (geteuid() != 0)
		return 0;
	if (setgroups(0, NULL) < 0 || setresgid(user->gid, user->gid, user->gid) < 0 ||
	    setresuid(user->uid, user->uid, user->uid) < 0)
		return err_set(err, errno, "cannot become user %u", (unsigned int)user->uid);
	return 0;
}

int jail_enter(const struct jail_user *user, struct err *err)
{
	int rc;

	if (JAIL_SANITIZED)
		return jail_change_user(user, err);
	jail_limit(RLIMIT_CORE, 0);
	jail_limit(RLIMIT_NOFILE, JAIL_FILES);
	jail_limit(RLIMIT_DATA, JAIL_DATA);
	jail_limit(RLIMIT_NPROC, 0);
	jail_empty_root();
	if (jail_change_user(user, err) < 0)
		return -err->num;
	/* Those of a user namespace are left; of root's, none. */
	rc = caps_drop();
	if (rc < 0)
		return err_set(err, -rc, "cannot give up capabilities");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return err_set(err, errno, "PR_SET_NO_NEW_PRIVS");
	/* Changing the user forgets this one. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return err_set(err, errno, "prctl");
	/* What the kernel does not have, or refuses, is the filter's alone. */
	(void)!landlock_deny(true);
	return jail_filter(err);
}
