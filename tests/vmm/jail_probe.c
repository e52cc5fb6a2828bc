/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Enters the jail of podflare-vmm as the program does, and tries one thing.
 *
 *   vmm-jail-probe WHERE NAME       WHERE: process; vcpu, leaf, leaf-vcpu: a thread that is in that
 *                                   jail, too; of the walls behind the filters, which are left out:
 *                                   unfiltered: all but the empty root; bare: all but Landlock;
 *                                   neither: all but both
 *   vmm-jail-probe WHERE rule-N     the call that row N of the table of WHERE is about
 *   vmm-jail-probe WHERE enter      how many nanoseconds it takes to enter that jail: a uint64_t
 *   vmm-jail-probe                  the names, one a line, behind where each belongs;
 *                                   the rules in force, behind "WHERE-rule"
 *
 *                                   "foreign int80", where there is that
 *
 * Exit status: 0: it could be done; 255: the jail could not be entered; 254: that thread has ended
 * and the process has not; else the errno. A death by SIGSYS is the filter's.
 */
#define _GNU_SOURCE
#include "../foreign_abi.h"
#include "jail_probe.h"

#include "lib/io.h"
#include "lib/landlock.h"
#include "vmm/jail/jail.h"
#include "vmm/jail/jail_rules.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#define FAILED_JAIL 255
static int pair[2];
static pid_t parent;

static int errno_or_0(long r)
{
	return r < 0 ? errno : 0;
}

static int try_raw(const struct probe *p)
{
	return errno_or_0(syscall(p->nr, p->a[0], p->a[1], p->a[2], p->a[3], p->a[4], p->a[5]));
}

/* A descriptor in a message, which is the one thing that leaves a process for good. */
static int try_pass_descriptor(void)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} c = {.align = {.cmsg_len = CMSG_LEN(sizeof(int)),
			 .cmsg_level = SOL_SOCKET,
			 .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {page, 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = c.buf,
			   .msg_controllen = sizeof(c.buf)};

	return errno_or_0(sendmsg(pair[0], &m, MSG_NOSIGNAL | MSG_DONTWAIT));
}

/* Not by way of x86-64: the filter of another architecture would be needed, and there is none. */

static int try_int80(void)
{
	return errno_or_0(foreign_int80());
}

static int try_x32(void)
{
	return errno_or_0(foreign_x32());
}

static int try_nothing(void)
{
	return 0;
}

static void *thread_of_nothing(void *arg)
{
	return arg;
}

static int try_thread(void)
{
	pthread_t t;
	int rc = pthread_create(&t, NULL, thread_of_nothing, NULL);

	return rc ? rc : pthread_join(t, NULL);
}

static int try_stream(void)
{
	int rc = errno_or_0(send(pair[0], "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT));

	return rc ? rc : errno_or_0(recv(pair[1], page, 1, MSG_DONTWAIT));
}

/* The rest is for a jail without its filter: what the other walls refuse, Landlock among them. */

static int try_read_file(void)
{
	return errno_or_0(open("/etc/passwd", O_RDONLY | O_CLOEXEC));
}

static int try_read_directory(void)
{
	return errno_or_0(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static int try_make_file(void)
{
	return errno_or_0(open("/tmp", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
}

static int try_run(void)
{
	char *const none[] = {NULL};

	return errno_or_0(execve("/bin/true", none, none));
}

static int tcp(int (*call)(int fd, const struct sockaddr *a, socklen_t len))
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	a.sin_port = htons(5009);
	return fd < 0 ? errno : errno_or_0(call(fd, (struct sockaddr *)&a, sizeof(a)));
}

static int try_tcp_bind(void)
{
	return tcp(bind);
}

static int try_tcp_connect(void)
{
	return tcp(connect);
}

static int try_signal_others(void)
{
	return errno_or_0(kill(parent, 0));
}

static int try_trace_others(void)
{
	return errno_or_0(ptrace(PTRACE_ATTACH, parent, NULL, NULL));
}

static int try_host_name(void)
{
	return errno_or_0(sethostname("x", 1));
}

static int try_mount(void)
{
	return errno_or_0(mount("x", "/tmp", "tmpfs", 0, NULL));
}

static int try_core(void)
{
	const struct rlimit r = {1, 1};

	return errno_or_0(setrlimit(RLIMIT_CORE, &r));
}

/* And what the empty root leaves, where Landlock is not. */

static int open_path(const char *path)
{
	return errno_or_0(open(path, O_PATH | O_CLOEXEC));
}

static int try_path_of_a_file(void)
{
	return open_path("/etc/passwd");
}

static int try_path_of_a_device(void)
{
	return open_path("/dev/kvm");
}

static int try_path_of_a_process(void)
{
	return open_path("/proc/1/root");
}

static int try_path_above(void)
{
	if (chdir("..") < 0 || chdir("/../..") < 0)
		return errno;
	return open_path("../../etc/passwd");
}

static int try_make_in_root(void)
{
	return errno_or_0(mkdir("/x", 0700));
}

static int try_unix_socket(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "/run/x"};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	return fd < 0 ? errno : errno_or_0(connect(fd, (struct sockaddr *)&a, sizeof(a)));
}

static int try_remount_root(void)
{
	return errno_or_0(mount("x", "/", NULL, MS_REMOUNT | MS_BIND, NULL));
}

static int try_mount_proc(void)
{
	return errno_or_0(mount("x", "/", "proc", 0, NULL));
}

static int try_change_root(void)
{
	return errno_or_0(chroot("."));
}

/* EEXIST: there is something in it. */
static int try_entries_of_root(void)
{
	DIR *d = opendir("/");
	const struct dirent *e;
	int rc = d ? 0 : errno;

	while (rc == 0 && (e = readdir(d)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			rc = EEXIST;
	if (d)
		closedir(d);
	return rc;
}

/* All capabilities in a namespace of users of its own bring back nothing that was taken away. */
static int try_namespaces_again(void)
{
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
		return 0;
	umount2("/", MNT_DETACH);
	return try_entries_of_root();
}

static const struct {
	const char *where, *name;
	int (*fn)(void);
} more[] = {
	{"any", "pass-descriptor", try_pass_descriptor},
	{"any", "int80", try_int80},
	{"any", "x32", try_x32},
	{"any", "nothing", try_nothing},
	{"timed", "enter", try_nothing},
	{"any", "stream", try_stream},
	{"vcpu", "thread", try_thread},
	{"unfiltered", "read-file", try_read_file},
	{"unfiltered", "read-directory", try_read_directory},
	{"unfiltered", "make-file", try_make_file},
	{"unfiltered", "run", try_run},
	{"unfiltered", "tcp-bind", try_tcp_bind},
	{"unfiltered", "tcp-connect", try_tcp_connect},
	{"unfiltered", "signal-others", try_signal_others},
	{"unfiltered", "trace-others", try_trace_others},
	{"unfiltered", "host-name", try_host_name},
	{"unfiltered", "mount", try_mount},
	{"unfiltered", "core", try_core},
	{"bare", "path-of-a-file", try_path_of_a_file},
	{"bare", "path-of-a-device", try_path_of_a_device},
	{"bare", "path-of-a-process", try_path_of_a_process},
	{"bare", "path-above", try_path_above},
	{"bare", "run-a-program", try_run},
	{"bare", "unix-socket", try_unix_socket},
	{"bare", "entries-of-root", try_entries_of_root},
	{"bare", "make-in-root", try_make_in_root},
	{"bare", "remount-root", try_remount_root},
	{"bare", "mount-proc", try_mount_proc},
	{"bare", "change-root", try_change_root},
	{"bare", "namespaces-again", try_namespaces_again},
};

static const char *const kinds[JAIL_KINDS] = {
	[JAIL_PROCESS] = "process",
	[JAIL_VCPU] = "vcpu",
	[JAIL_LEAF] = "leaf",
	[JAIL_LEAF_VCPU] = "leaf-vcpu",
};

/* Number, system call and what its arguments are compared with. */
static void list_rules(enum jail_kind kind)
{
	const struct jail_rules *rules = jail_rules_of(kind);

	for (size_t i = 0; i < rules->n; i++) {
		const struct jail_rule *r = &rules->rule[i];
		char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, r->nr);

		if (!jail_rule_holds(kind, r)) {
			free(name);
			continue;
		}
		printf("%s-rule %zu-%s", kinds[kind], i, name);
		free(name);
		for (unsigned int k = 0; k < r->nargs; k++)
			printf("-%llx", (unsigned long long)(r->args[k].op == SCMP_CMP_EQ
								     ? r->args[k].datum_a
								     : r->args[k].datum_b));
		putchar('\n');
	}
}

static void list_names(void)
{
	for (size_t t = 0; t < PROBE_TABLES; t++)
		for (size_t i = 0; i < probe_tables[t].n; i++)
			printf("%s %s\n", probe_tables[t].where, probe_tables[t].probe[i].name);
	for (size_t i = 0; i < ARRAY_SIZE(more); i++)
		printf("%s %s\n", more[i].where, more[i].name);
	printf("landlock %d\n", landlock_abi());
	if (foreign_int80_exists())
		puts("foreign int80");
	for (enum jail_kind kind = 0; kind < JAIL_KINDS; kind++)
		list_rules(kind);
}

/* The call that a rule is about, as far as it says; the rest of it is zeros. */
static int try_rule(const struct jail_rules *rules, size_t i)
{
	unsigned long a[6] = {0};

	if (i >= rules->n)
		return -1;
	for (unsigned int k = 0; k < rules->rule[i].nargs; k++) {
		const struct scmp_arg_cmp *c = &rules->rule[i].args[k];

		a[c->arg] = c->op == SCMP_CMP_EQ ? c->datum_a : c->datum_b;
	}
	return errno_or_0(syscall(rules->rule[i].nr, a[0], a[1], a[2], a[3], a[4], a[5]));
}

/* -1: there is no probe of that name. */
static int try(enum jail_kind kind, const char *name)
{
	if (strncmp(name, "rule-", 5) == 0)
		return try_rule(jail_rules_of(kind), strtoul(name + 5, NULL, 10));
	for (size_t t = 0; t < PROBE_TABLES; t++)
		for (size_t i = 0; i < probe_tables[t].n; i++)
			if (strcmp(probe_tables[t].probe[i].name, name) == 0)
				return try_raw(&probe_tables[t].probe[i]);
	for (size_t i = 0; i < ARRAY_SIZE(more); i++)
		if (strcmp(more[i].name, name) == 0)
			return more[i].fn();
	return -1;
}

struct attempt {
	const struct jail *jail;
	enum jail_kind kind;
	const char *name;
	int result;
	uint64_t ns; /* that it took to enter the jail: bench/leaf_native.py */
};

static void *jailed_thread(void *arg)
{
	struct attempt *a = arg;
	uint64_t from = io_now_ns();
	int rc = jail_enter_thread(a->jail, a->kind);

	a->ns = io_now_ns() - from;
	a->result = rc < 0 ? FAILED_JAIL : try(a->kind, a->name);
	return NULL;
}

/* Threads of vCPUs are such from the start; a leaf's loop has been the process's first one. */
static int attempt(struct attempt *a)
{
	pthread_t t;

	if (a->kind == JAIL_PROCESS)
		return try(a->kind, a->name);
	if (a->kind == JAIL_LEAF)
		jailed_thread(a);
	else if (pthread_create(&t, NULL, jailed_thread, a) != 0 || pthread_join(t, NULL) != 0)
		return FAILED_JAIL;
	return a->result;
}

static bool filtered, rooted, landlocked;

int __real_seccomp_load(scmp_filter_ctx ctx);
int __wrap_seccomp_load(scmp_filter_ctx ctx);
int __wrap_seccomp_load(scmp_filter_ctx ctx)
{
	return filtered ? __real_seccomp_load(ctx) : 0;
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
	return rooted ? __real_emptyroot_enter(name) : 0;
}

int main(int argc, char **argv)
{
	static struct jail jail;
	struct attempt a = {.jail = &jail};
	struct err err = {0};

	if (argc != 3) {
		list_names();
		return 0;
	}
	parent = getppid();
	a.name = argv[2];
	landlocked = strcmp(argv[1], "bare") != 0 && strcmp(argv[1], "neither") != 0;
	rooted = strcmp(argv[1], "unfiltered") != 0 && strcmp(argv[1], "neither") != 0;
	filtered = landlocked && rooted;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return FAILED_JAIL;
	if (jail_enter(&jail, false, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
		return FAILED_JAIL;
	}
	/* What kills kills the process: were it only the thread, this one would go on. */
	if (filtered && bystander_start() != 0)
		return FAILED_JAIL;
	for (enum jail_kind kind = 0; kind < JAIL_KINDS; kind++)
		if (strcmp(argv[1], kinds[kind]) == 0)
			a.kind = kind;
	a.result = attempt(&a);
	if (strcmp(a.name, "enter") == 0 && write(1, &a.ns, sizeof(a.ns)) < 0)
		_exit(FAILED_JAIL);
	_exit(a.result);
}
