/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Enters the jail of podflare-egress as the program does, and tries one thing.
 *
 *   egress-jail-probe NAME [HOW]  HOW: unfiltered: without the filter, and the empty root; bare:
 *                                 without Landlock, too
 *   egress-jail-probe             the names, one a line; without what this kernel does not have;
 *                                 and "landlock VERSION"
 *
 * Exit status: 0: it could be done; 1, unfiltered and bare the errno: it failed with an error; 3:
 * the jail could not be entered; 254: the thread has ended and the process has not; a death by
 * SIGSYS is the filter's.
 */
#define _GNU_SOURCE
#include "../foreign_abi.h"
#include "egress/jail.h"
#include "egress/jail_filter.h"
#include "lib/emptyroot.h"
#include "lib/landlock.h"
#include "lib/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* The number that glibc's wrapper would use is what the filter sees. */
static long try_open(void)
{
	return open("/", O_RDONLY | O_CLOEXEC);
}

static long try_openat2(void)
{
	uint64_t how[3] = {O_RDONLY};

	return syscall(SYS_openat2, AT_FDCWD, "/", how, sizeof(how));
}

static long try_exec(void)
{
	char *const none[] = {NULL};

	return execve("/bin/true", none, none);
}

static long try_fork(void)
{
	return syscall(SYS_fork);
}

static long try_clone(void)
{
	return syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);
}

static long try_clone3(void)
{
	return syscall(SYS_clone3, NULL, 0);
}

static long try_stat(void)
{
	struct stat st;

	return stat("/", &st);
}

static long try_bind(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	return bind(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), (struct sockaddr *)&a,
		    sizeof(a));
}

static long try_listen(void)
{
	return listen(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), 1);
}

static long try_accept(void)
{
	return accept4(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), NULL, NULL, 0);
}

static long try_unix(void)
{
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static long try_socketpair(void)
{
	int fds[2];

	return socketpair(AF_UNIX, SOCK_DGRAM, 0, fds);
}

static long try_netlink(void)
{
	return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
}

static long try_packet(void)
{
	return socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
}

static long try_vsock(void)
{
	return socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static long try_raw(void)
{
	return socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
}

static long try_icmp(void)
{
	return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP);
}

static long try_mptcp(void)
{
	return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 262);
}

static long try_ptrace(void)
{
	return ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static long try_kill(void)
{
	return kill(1, 0);
}

static long try_tgkill(void)
{
	return syscall(SYS_tgkill, getpid(), gettid(), SIGTERM);
}

/* Of a process that it could not harm without the filter, either. */
static long try_tgkill_other(void)
{
	return syscall(SYS_tgkill, 1, 1, SIGABRT);
}

static long try_fcntl_owner(void)
{
	return fcntl(0, F_SETOWN, 1);
}

static long try_fcntl_owner_ex(void)
{
	struct f_owner_ex owner = {F_OWNER_PID, 1};

	return fcntl(0, F_SETOWN_EX, &owner);
}

static long try_fcntl_signal(void)
{
	return fcntl(0, F_SETSIG, SIGKILL);
}

static long try_fcntl_async(void)
{
	return fcntl(0, F_SETFL, O_ASYNC | O_NONBLOCK);
}

static long try_fcntl_lease(void)
{
	return fcntl(0, F_SETLEASE, F_RDLCK);
}

static long try_fcntl_dup(void)
{
	return fcntl(0, F_DUPFD, 100);
}

static long try_pidfd(void)
{
	return syscall(SYS_pidfd_open, 1, 0);
}

static long try_readv(void)
{
	return syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0);
}

static long try_unshare(void)
{
	return unshare(CLONE_NEWUSER);
}

static long try_mount(void)
{
	return mount("none", "/", "tmpfs", 0, NULL);
}

static long try_chroot(void)
{
	return chroot("/");
}

static long try_setuid(void)
{
	return setuid(0);
}

static long try_prctl(void)
{
	return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static long try_ioctl(void)
{
	return ioctl(0, FIONREAD, NULL);
}

static long try_memfd(void)
{
	return memfd_create("x", 0);
}

static long try_bpf(void)
{
	return syscall(SYS_bpf, 0, NULL, 0);
}

static long try_io_uring(void)
{
	return syscall(SYS_io_uring_setup, 1, NULL);
}

static long try_exec_memory(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? -1 : 0;
}

static long try_exec_protect(void)
{
	void *p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

/* What has to work. */
static long try_fcntl_flags(void)
{
	int fds[2], flags;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
		return -1;
	flags = fcntl(fds[0], F_GETFL);
	if (fcntl(fds[0], F_SETFL, flags | O_NONBLOCK) < 0)
		return -1;
	return fcntl(fds[0], F_SETFD, FD_CLOEXEC);
}

static long try_nothing(void)
{
	return 0;
}

static long try_tcp(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	a.sin_port = htons(1);
	return connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0 && errno == EINPROGRESS ? 0 : fd;
}

static long try_udp6(void)
{
	return socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

static long try_memory(void)
{
	void *p = malloc(64u << 20);

	if (!p)
		return -1;
	memset(p, 1, 64u << 20);
	free(p);
	return 0;
}

static long try_too_much_memory(void)
{
	return malloc(1024ul << 20) ? 0 : -1;
}

static long try_abort(void)
{
	abort();
}

/* For a jail without its filter. */
static pid_t other; /* of the same user, and not in the jail */

static long try_read_file(void)
{
	return open("/etc/passwd", O_RDONLY | O_CLOEXEC);
}

static long try_make_file(void)
{
	return open("/tmp", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
}

static long try_signal(void)
{
	return kill(other, 0);
}

static const struct {
	const char *name;
	long (*fn)(void);
} probes[] = {
	{"open", try_open},
	{"openat2", try_openat2},
	{"exec", try_exec},
	{"fork", try_fork},
	{"clone", try_clone},
	{"clone3", try_clone3},
	{"stat", try_stat},
	{"bind", try_bind},
	{"listen", try_listen},
	{"accept", try_accept},
	{"unix", try_unix},
	{"socketpair", try_socketpair},
	{"netlink", try_netlink},
	{"packet", try_packet},
	{"vsock", try_vsock},
	{"raw", try_raw},
	{"icmp", try_icmp},
	{"mptcp", try_mptcp},
	{"ptrace", try_ptrace},
	{"kill", try_kill},
	{"tgkill", try_tgkill},
	{"tgkill-other", try_tgkill_other},
	{"fcntl-owner", try_fcntl_owner},
	{"fcntl-owner-ex", try_fcntl_owner_ex},
	{"fcntl-signal", try_fcntl_signal},
	{"fcntl-async", try_fcntl_async},
	{"fcntl-lease", try_fcntl_lease},
	{"fcntl-dup", try_fcntl_dup},
	{"pidfd", try_pidfd},
	{"process_vm_readv", try_readv},
	{"unshare", try_unshare},
	{"mount", try_mount},
	{"chroot", try_chroot},
	{"setuid", try_setuid},
	{"prctl", try_prctl},
	{"ioctl", try_ioctl},
	{"memfd", try_memfd},
	{"bpf", try_bpf},
	{"io_uring", try_io_uring},
	{"exec-memory", try_exec_memory},
	{"exec-protect", try_exec_protect},
	{"int80", foreign_int80},
	{"x32", foreign_x32},
	{"nothing", try_nothing},
	{"fcntl-flags", try_fcntl_flags},
	{"tcp", try_tcp},
	{"udp6", try_udp6},
	{"memory", try_memory},
	{"too-much-memory", try_too_much_memory},
	{"abort", try_abort},
	{"read-file", try_read_file},
	{"make-file", try_make_file},
	{"signal", try_signal},
};

static bool filtered = true, landlocked = true;

int __real_jail_filter(struct err *err);
int __wrap_jail_filter(struct err *err);
int __wrap_jail_filter(struct err *err)
{
	return filtered ? __real_jail_filter(err) : 0;
}

int __real_landlock_deny(bool dials);
int __wrap_landlock_deny(bool dials);
int __wrap_landlock_deny(bool dials)
{
	return landlocked ? __real_landlock_deny(dials) : 0;
}

int __real_emptyroot_enter(const char *name);
int __wrap_emptyroot_enter(const char *name);
int __wrap_emptyroot_enter(const char *name)
{
	return filtered ? __real_emptyroot_enter(name) : 0;
}

/* A process that waits as the user that the jail is to be of, until this one has ended. */
static int start_other(const struct jail_user *user)
{
	int ends[2];
	char c = 0;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return -1;
	other = fork();
	if (other == 0) {
		close(ends[1]);
		if (geteuid() == 0 && (setresgid(user->gid, user->gid, user->gid) < 0 ||
				       setresuid(user->uid, user->uid, user->uid) < 0))
			_exit(1);
		if (write(ends[0], &c, 1) == 1)
			(void)!read(ends[0], &c, 1);
		_exit(0);
	}
	close(ends[0]);
	return other > 0 && read(ends[1], &c, 1) == 1 ? 0 : -1;
}

static int probe(long (*fn)(void))
{
	struct jail_user user;
	struct err err = {0};

	/* The proxy has one thread. What must end the process is seen where there are two; this one
	 * is not in the jail. */
	if ((fn == foreign_int80 || fn == foreign_x32) && bystander_start() != 0)
		return 3;
	if (jail_find_user("nobody", &user, &err) < 0 || (!filtered && start_other(&user) < 0) ||
	    jail_enter(&user, &err) < 0) {
		log_error("%s", err.msg);
		return 3;
	}
	if (fn() >= 0)
		return 0;
	return filtered ? 1 : errno;
}

int main(int argc, char **argv)
{
	if (argc == 1) {
		for (size_t i = 0; i < ARRAY_SIZE(probes); i++)
			if (probes[i].fn != foreign_int80 || foreign_int80_exists())
				puts(probes[i].name);
		printf("landlock %d\n", landlock_abi());
		return 0;
	}
	filtered = argc == 2;
	landlocked = argc == 2 || strcmp(argv[2], "unfiltered") == 0;
	for (size_t i = 0; i < ARRAY_SIZE(probes); i++)
		if (strcmp(argv[1], probes[i].name) == 0)
			return probe(probes[i].fn);
	return 2;
}
