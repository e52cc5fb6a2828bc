/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jail of a VMM: namespaces as far as the host allows them, then a seccomp
 * allow-list. The filter alone already makes a socket impossible; the network
 * namespace makes it pointless as well.
 */
#define _GNU_SOURCE
#include "vmm/jail/jail.h"

#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

/*
 * Calls allowed with any argument. Each line: who needs it.
 * ioctl is wide here because a VMM only holds descriptors of KVM, sockets,
 * eventfds and memfds; per-thread filters with request numbers narrow it.
 */
static const int allowed[] = {
	SCMP_SYS(read),              /* eventfds */
	SCMP_SYS(write),             /* eventfds */
	SCMP_SYS(pread64),           /* kernel and ramdisk */
	SCMP_SYS(preadv),            /* disk: reads */
	SCMP_SYS(pwritev),           /* disk: writes */
	SCMP_SYS(fallocate),         /* disk: space of what is discarded or zeroed */
	SCMP_SYS(fdatasync),         /* disk: flush */
	SCMP_SYS(recvmsg),           /* control socket */
	SCMP_SYS(sendmsg),           /* control socket, streams */
	SCMP_SYS(recvfrom),          /* streams */
	SCMP_SYS(sendto),            /* streams */
	SCMP_SYS(readv),             /* streams */
	SCMP_SYS(writev),            /* streams */
	SCMP_SYS(shutdown),          /* half-closed streams */
	SCMP_SYS(close),             /* streams, boot descriptors */
	SCMP_SYS(close_range),       /* what a forked child must not have */
	SCMP_SYS(fcntl),             /* seals of the root image, rights of layers, O_NONBLOCK */
	SCMP_SYS(fstat),             /* sizes of what was handed over, space of the disk's top */
	SCMP_SYS(newfstatat),        /* the same, as glibc spells it */
	SCMP_SYS(epoll_create1),     /* vsock's set of sockets */
	SCMP_SYS(epoll_wait),        /* loop */
	SCMP_SYS(epoll_pwait),       /* loop */
	SCMP_SYS(epoll_ctl),         /* loop */
	SCMP_SYS(eventfd2),          /* hand-over */
	SCMP_SYS(ioctl),             /* KVM */
	SCMP_SYS(munmap),            /* guest RAM ends, thread stacks */
	SCMP_SYS(madvise),           /* huge pages, thread stacks */
	SCMP_SYS(mremap),            /* realloc */
	SCMP_SYS(brk),               /* malloc */
	SCMP_SYS(futex),             /* locks, threads */
	SCMP_SYS(set_robust_list),   /* thread start */
	SCMP_SYS(rseq),              /* thread start */
	SCMP_SYS(rt_sigprocmask),    /* thread start */
	SCMP_SYS(rt_sigreturn),      /* return from a handler */
	SCMP_SYS(rt_sigaction),      /* abort() */
	SCMP_SYS(prctl),             /* thread names */
	SCMP_SYS(sched_getaffinity), /* thread attributes */
	SCMP_SYS(sched_yield),       /* locks */
	SCMP_SYS(gettid),            /* abort() */
	SCMP_SYS(getpid),            /* abort() */
	SCMP_SYS(clock_gettime),     /* when the vDSO cannot */
	SCMP_SYS(clock_nanosleep),   /* back-off */
	SCMP_SYS(getrandom),         /* malloc's tags */
	SCMP_SYS(restart_syscall),   /* after a stop */
	SCMP_SYS(exit),
	SCMP_SYS(exit_group),
};

static int jail_filter(struct err *err)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int rc = ctx ? 0 : -ENOMEM;

	for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(allowed); i++)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
	/* No memory of a VMM is ever made executable. */
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
				      SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
				      SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	/*
	 * Threads, and the fork of a VM with exactly its flags; no namespaces. The flags of clone
	 * can be looked at, those of clone3 cannot.
	 */
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
				      SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
				      SCMP_A0(SCMP_CMP_EQ, CLONE_PARENT | SIGCHLD));
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	/* Kicks of vCPU threads. Another VMM that is sent one only looks around. */
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
				      SCMP_A2(SCMP_CMP_EQ, SIGUSR1));
	if (rc == 0)
		rc = seccomp_load(ctx);
	seccomp_release(ctx);
	return rc < 0 ? err_set(err, -rc, "cannot install the seccomp filter") : 0;
}

int jail_enter(struct err *err)
{
	const struct rlimit no_core = {0, 0};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return err_set(err, errno, "PR_SET_NO_NEW_PRIVS");
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return err_set(err, errno, "PR_SET_DUMPABLE");
	setrlimit(RLIMIT_CORE, &no_core);
	/*
	 * As an ordinary user the namespaces need a user namespace around them, as root they do
	 * not. A host may forbid either; the filter below holds in any case.
	 */
	if (unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS) < 0 &&
	    unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS) < 0)
		errno = 0;
	return jail_filter(err);
}
