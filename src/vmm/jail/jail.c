/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of the steps, as each takes away what the one before it needed:
 * limits, namespaces with an empty root, capabilities, privileges; then the filters of threads
 * are made, which takes memfds; then Landlock; then the process's own filter.
 *
 * What is not limited: RLIMIT_AS and RLIMIT_DATA, as guests are of any size;
 * RLIMIT_MEMLOCK, as no rule allows to lock; RLIMIT_NPROC, which counts all
 * processes of the user, and he has other VMMs.
 */
#define _GNU_SOURCE
#include "vmm/jail/jail.h"

#include "lib/caps.h"
#include "lib/io.h"
#include "lib/landlock.h"
#include "lib/spaces.h"
#include "vmm/core/machine_disk.h"
#include "vmm/jail/jail_rules.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* 320 streams, 32 layers, 32 vCPUs, and what is ours, are less than 400. */
#define JAIL_FILES 1024u

static int jail_limit(int what, rlim_t value, struct err *err)
{
	struct rlimit r;

	/* One that is lower already stays. */
	if (getrlimit(what, &r) < 0)
		return err_set(err, errno, "getrlimit");
	r.rlim_max = r.rlim_max < value ? r.rlim_max : value;
	r.rlim_cur = r.rlim_cur < r.rlim_max ? r.rlim_cur : r.rlim_max;
	return setrlimit(what, &r) < 0 ? err_set(err, errno, "setrlimit") : 0;
}

static int jail_limits(struct err *err)
{
	int rc = jail_limit(RLIMIT_CORE, 0, err);

	if (rc == 0)
		rc = jail_limit(RLIMIT_NOFILE, JAIL_FILES, err);
	/* No layer is larger than the largest disk, whatever is written where. */
	if (rc == 0)
		rc = jail_limit(RLIMIT_FSIZE, (rlim_t)MACHINE_DISK_MAX_MIB << 20, err);
	return rc;
}

static int jail_namespaces(bool without, struct err *err)
{
	int rc = spaces_enter();

	if (rc == 0 || without)
		return 0;
	return err_set(err, -rc, "this host allows a VMM no namespaces of its own; %s",
		       SPACES_ADVICE);
}

static int jail_privileges(struct err *err)
{
	int rc = caps_drop();

	if (rc < 0)
		return err_set(err, -rc, "cannot give up capabilities");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return err_set(err, errno, "PR_SET_NO_NEW_PRIVS");
	/* So /proc/PID is root's. The daemon reads nothing there; what measures VMMs is root. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return err_set(err, errno, "PR_SET_DUMPABLE");
	/* A change of credentials may have made it forgotten. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		return err_set(err, errno, "PR_SET_PDEATHSIG");
	return 0;
}

/* To be freed with seccomp_release(); NULL: *rc is -errno. */
static scmp_filter_ctx jail_context(enum jail_kind kind, int *rc)
{
	const struct jail_rules *rules = jail_rules_of(kind);
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);

	*rc = ctx ? 0 : -ENOMEM;
	/* Of IA-32's and x32's calls, too: libseccomp would have them end the thread alone. */
	if (*rc == 0)
		*rc = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	for (size_t i = 0; *rc == 0 && i < rules->n; i++) {
		const struct jail_rule *r = &rules->rule[i];

		if (jail_rule_holds(kind, r))
			*rc = seccomp_rule_add_array(ctx, r->action, r->nr, r->nargs, r->args);
	}
	/* KVM_RUN is called more often than all the others together: it is looked for first. */
	if (*rc == 0)
		*rc = seccomp_syscall_priority(ctx, SCMP_SYS(ioctl), UINT8_MAX);
	if (*rc == 0)
		return ctx;
	seccomp_release(ctx);
	return NULL;
}

static int jail_make_filter(struct jail_filter *f, enum jail_kind kind)
{
	_cleanup_fd int fd = memfd_create("filter", MFD_CLOEXEC);
	scmp_filter_ctx ctx = NULL;
	int64_t size;
	int rc = fd < 0 ? -errno : 0;

	if (rc == 0)
		ctx = jail_context(kind, &rc);
	if (rc == 0)
		rc = seccomp_export_bpf(ctx, fd);
	seccomp_release(ctx);
	size = rc == 0 ? io_size(fd) : rc;
	if (size > (int64_t)sizeof(f->insn))
		size = -E2BIG;
	rc = size < 0 ? (int)size : io_pread_full(fd, f->insn, (size_t)size, 0);
	if (rc == 0)
		f->len = (unsigned short)((size_t)size / sizeof(f->insn[0]));
	return rc;
}

static int jail_make_filters(struct jail *j, struct err *err)
{
	int rc = 0;

	*j = (struct jail){0};
	for (enum jail_kind kind = JAIL_PROCESS + 1; rc == 0 && kind < JAIL_KINDS; kind++)
		rc = jail_make_filter(&j->filter[kind], kind);
	return rc < 0 ? err_set(err, -rc, "cannot make the seccomp filters of threads") : 0;
}

static int jail_landlock(struct err *err)
{
	int abi = landlock_deny(false);

	return abi < 0 ? err_set(err, -abi, "cannot enter Landlock") : 0;
}

static int jail_close(struct err *err)
{
	int rc;
	scmp_filter_ctx ctx = jail_context(JAIL_PROCESS, &rc);

	if (rc == 0)
		rc = seccomp_load(ctx);
	seccomp_release(ctx);
	return rc < 0 ? err_set(err, -rc, "cannot install the seccomp filter") : 0;
}

int jail_enter(struct jail *j, bool without_namespaces, struct err *err)
{
	int rc = jail_limits(err);

	if (rc == 0)
		rc = jail_namespaces(without_namespaces, err);
	if (rc == 0)
		rc = jail_privileges(err);
	if (rc == 0)
		rc = jail_make_filters(j, err);
	if (rc == 0)
		rc = jail_landlock(err);
	if (rc == 0)
		rc = jail_close(err);
	return rc;
}

int jail_enter_thread(const struct jail *j, enum jail_kind kind)
{
	const struct jail_filter *f = &j->filter[kind];
	const struct sock_fprog prog = {.len = f->len,
					.filter = (struct sock_filter *)(uintptr_t)f->insn};

	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) < 0 ? -errno : 0;
}
