/* SPDX-License-Identifier: Apache-2.0 */
/* The rules. Each line says who needs it. */
#define _GNU_SOURCE
#include "egress/jail_rules.h"

#include "lib/cleanup.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* Of an argument: it has this value; it has none of these bits; but for `loose`, it is this. */
#define IS(i, v)                                \
	{                                       \
		(i), SCMP_CMP_EQ, (uint64_t)(v) \
	}
#define NOT(i, bits)                                         \
	{                                                    \
		(i), SCMP_CMP_MASKED_EQ, (uint64_t)(bits), 0 \
	}
#define BUT(i, loose, v)                                                   \
	{                                                                  \
		(i), SCMP_CMP_MASKED_EQ, ~(uint64_t)(loose), (uint64_t)(v) \
	}

#define ALLOW(name)                  \
	{                            \
		.nr = SCMP_SYS(name) \
	}
#define ALLOW_IF(name, ...)                                                                        \
	{                                                                                          \
		.nr = SCMP_SYS(name), .nargs = ARRAY_SIZE(((struct scmp_arg_cmp[]){__VA_ARGS__})), \
		.args = {__VA_ARGS__},                                                             \
	}
#define SOCKET(family, type) ALLOW_IF(socket, IS(0, family), BUT(1, SOCKET_FLAGS, type), IS(2, 0))

#define SOCKET_FLAGS (SOCK_NONBLOCK | SOCK_CLOEXEC)

/* One rule a line. */
/* clang-format off */
static const struct jail_rule rules[] = {
	ALLOW(read), /* streams, eventfd of the loop */
	ALLOW(write), /* log, eventfd of the loop */
	ALLOW(writev), /* resolver over TCP */
	ALLOW(pread64), /* policy */
	ALLOW(recvfrom), /* streams, resolver */
	ALLOW(recvmsg), /* control socket */
	ALLOW(sendto), /* control socket, streams, resolver */
	ALLOW(sendmsg), /* HTTP library: head and body of an answer */
	ALLOW(connect), /* destinations, resolver */
	ALLOW(shutdown), /* half-closed streams */
	ALLOW(close), /* everything */
	ALLOW(setsockopt), /* TCP_NODELAY, SO_KEEPALIVE */
	ALLOW(getsockopt), /* SO_ERROR of a dial */
	ALLOW(getsockname), /* libcurl, of a connection */
	ALLOW(getpeername), /* libcurl, of a connection */
	ALLOW(fstat), /* size of a policy */
	ALLOW(poll), /* a full control socket */
	ALLOW(epoll_wait), /* loop */
	ALLOW(epoll_ctl), /* loop */
	ALLOW(munmap), /* free */
	ALLOW(mremap), /* realloc */
	ALLOW(madvise), /* free */
	ALLOW(brk), /* malloc */
	ALLOW(futex), /* locks of libraries */
	ALLOW(rt_sigprocmask), /* abort() */
	ALLOW(rt_sigaction), /* libcurl, of SIGPIPE; abort() */
	ALLOW(gettid), /* abort() */
	ALLOW(getpid), /* OpenSSL, whether it was forked; abort() */
	ALLOW(clock_gettime), /* when the vDSO cannot */
	ALLOW(gettimeofday), /* the same, of the resolver */
	ALLOW(getrandom), /* malloc's tags */
	ALLOW(restart_syscall), /* after a stop */
	ALLOW(exit_group),

	/* Streams are TCP, datagrams UDP, of IPv4 or IPv6: the resolver's and destinations'. */
	SOCKET(AF_INET, SOCK_STREAM),
	SOCKET(AF_INET6, SOCK_STREAM),
	SOCKET(AF_INET, SOCK_DGRAM),
	SOCKET(AF_INET6, SOCK_DGRAM),
	/* Fronts of the HTTP library; what wakes libcurl, which it makes with each new policy. */
	ALLOW_IF(socketpair, IS(0, AF_UNIX), BUT(1, SOCKET_FLAGS, SOCK_STREAM)),

	/* Flags of descriptors, O_NONBLOCK, seals of a policy. Not whom the kernel is to send a
	 * signal, and which (F_SETOWN, F_SETSIG), nor that it is to (O_ASYNC): that would be a
	 * kill() of any process of this user. */
	ALLOW_IF(fcntl, IS(1, F_SETFD)),
	ALLOW_IF(fcntl, IS(1, F_GETFL)),
	ALLOW_IF(fcntl, IS(1, F_GET_SEALS)),
	ALLOW_IF(fcntl, IS(1, F_SETFL), NOT(2, O_ASYNC)),

	/* No memory is ever made executable. */
	ALLOW_IF(mmap, NOT(2, PROT_EXEC)),
	ALLOW_IF(mprotect, NOT(2, PROT_EXEC)),
	ALLOW_IF(newfstatat, IS(3, AT_EMPTY_PATH)), /* fstat(), as glibc spells it; not a name */
	/* abort(), of this process alone (0: its number): it makes no other, and its number stays. */
	ALLOW_IF(tgkill, IS(0, 0), IS(2, SIGABRT)),
};

/* clang-format on */

bool jail_rule_get(size_t i, struct jail_rule *out)
{
	if (i >= ARRAY_SIZE(rules))
		return false;
	*out = rules[i];
	if (out->nr == SCMP_SYS(tgkill))
		out->args[0].datum_a = (uint64_t)getpid();
	return true;
}
