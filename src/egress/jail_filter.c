/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The allow-list. Each line says who needs it; what is not here kills the
 * process, so a guest that found a way into it has nothing to try.
 */
#define _GNU_SOURCE
#include "egress/jail_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static const int allowed[] = {
	SCMP_SYS(read),            /* streams, eventfd of the loop */
	SCMP_SYS(write),           /* log, eventfd of the loop */
	SCMP_SYS(writev),          /* resolver over TCP */
	SCMP_SYS(pread64),         /* policy */
	SCMP_SYS(recvfrom),        /* streams, resolver */
	SCMP_SYS(recvmsg),         /* control socket */
	SCMP_SYS(sendto),          /* streams, resolver */
	SCMP_SYS(sendmsg),         /* control socket */
	SCMP_SYS(connect),         /* destinations, resolver */
	SCMP_SYS(shutdown),        /* half-closed streams */
	SCMP_SYS(close),           /* everything */
	SCMP_SYS(setsockopt),      /* TCP_NODELAY, SO_KEEPALIVE */
	SCMP_SYS(getsockopt),      /* SO_ERROR of a dial */
	SCMP_SYS(getsockname),     /* libcurl, of a connection */
	SCMP_SYS(getpeername),     /* libcurl, of a connection */
	SCMP_SYS(fstat),           /* size of a policy */
	SCMP_SYS(poll),            /* a full control socket */
	SCMP_SYS(epoll_wait),      /* loop */
	SCMP_SYS(epoll_pwait),     /* loop */
	SCMP_SYS(epoll_ctl),       /* loop */
	SCMP_SYS(munmap),          /* free */
	SCMP_SYS(mremap),          /* realloc */
	SCMP_SYS(madvise),         /* free */
	SCMP_SYS(brk),             /* malloc */
	SCMP_SYS(futex),           /* locks of libraries */
	SCMP_SYS(rt_sigprocmask),  /* abort() */
	SCMP_SYS(rt_sigaction),    /* abort() */
	SCMP_SYS(rt_sigreturn),    /* return from a handler */
	SCMP_SYS(gettid),          /* abort() */
	SCMP_SYS(getpid),          /* abort() */
	SCMP_SYS(clock_gettime),   /* when the vDSO cannot */
	SCMP_SYS(gettimeofday),    /* the same, of the resolver */
	SCMP_SYS(getrandom),       /* malloc's tags */
	SCMP_SYS(restart_syscall), /* after a stop */
	SCMP_SYS(exit_group),
};

/* Streams are TCP, datagrams UDP, of IPv4 or IPv6: the resolver's and destinations'. */
static int allow_sockets(scmp_filter_ctx ctx)
{
	static const struct {
		int family, type, protocol;
	} kinds[] = {
		{AF_INET, SOCK_STREAM, 0},
		{AF_INET6, SOCK_STREAM, 0},
		{AF_INET, SOCK_STREAM, IPPROTO_TCP},
		{AF_INET6, SOCK_STREAM, IPPROTO_TCP},
		{AF_INET, SOCK_DGRAM, 0},
		{AF_INET6, SOCK_DGRAM, 0},
		{AF_INET, SOCK_DGRAM, IPPROTO_UDP},
		{AF_INET6, SOCK_DGRAM, IPPROTO_UDP},
	};
	const uint64_t kind = ~(uint64_t)(SOCK_NONBLOCK | SOCK_CLOEXEC);
	int rc = 0;

	for (size_t i = 0; i < ARRAY_SIZE(kinds) && rc == 0; i++)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(socket), 3,
				      SCMP_A0(SCMP_CMP_EQ, (uint64_t)kinds[i].family),
				      SCMP_A1(SCMP_CMP_MASKED_EQ, kind, (uint64_t)kinds[i].type),
				      SCMP_A2(SCMP_CMP_EQ, (uint64_t)kinds[i].protocol));
	return rc;
}

/*
 * Flags of descriptors, O_NONBLOCK, seals of a policy. Not whom the kernel is to send a signal, and
 * which (F_SETOWN, F_SETSIG), nor that it is to (O_ASYNC): that would be a kill() of any process of
 * this user.
 */
static int allow_fcntl(scmp_filter_ctx ctx)
{
	static const int commands[] = {F_GETFD, F_SETFD, F_GETFL, F_GET_SEALS};
	int rc = 0;

	for (size_t i = 0; i < ARRAY_SIZE(commands) && rc == 0; i++)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1,
				      SCMP_A1(SCMP_CMP_EQ, (uint64_t)commands[i]));
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 2,
				      SCMP_A1(SCMP_CMP_EQ, F_SETFL),
				      SCMP_A2(SCMP_CMP_MASKED_EQ, O_ASYNC, 0));
	return rc;
}

int jail_filter(struct err *err)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int rc = ctx ? 0 : -ENOMEM;

	/* Of IA-32's and x32's calls, too: libseccomp would have them end the thread alone. */
	if (rc == 0)
		rc = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(allowed); i++)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
	if (rc == 0)
		rc = allow_sockets(ctx);
	if (rc == 0)
		rc = allow_fcntl(ctx);
	/* Fronts of the HTTP library; what wakes libcurl, which it makes with each new policy. */
	if (rc == 0)
		rc = seccomp_rule_add(
			ctx, SCMP_ACT_ALLOW, SCMP_SYS(socketpair), 2, SCMP_A0(SCMP_CMP_EQ, AF_UNIX),
			SCMP_A1(SCMP_CMP_MASKED_EQ, ~(uint64_t)(SOCK_NONBLOCK | SOCK_CLOEXEC),
				SOCK_STREAM));
	/* No memory is ever made executable. */
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
				      SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
				      SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	/* fstat(), as glibc spells it; not a name. */
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(newfstatat), 1,
				      SCMP_A3(SCMP_CMP_EQ, AT_EMPTY_PATH));
	/* abort(), of this process alone: it makes no other, and its number stays. */
	if (rc == 0)
		rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 2,
				      SCMP_A0(SCMP_CMP_EQ, (uint64_t)getpid()),
				      SCMP_A2(SCMP_CMP_EQ, SIGABRT));
	if (rc == 0)
		rc = seccomp_load(ctx);
	seccomp_release(ctx);
	return rc < 0 ? err_set(err, -rc, "cannot install the seccomp filter") : 0;
}
