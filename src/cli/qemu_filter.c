/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What no rule names is allowed: which calls QEMU makes differs from version to version, and by the
 * libraries it is linked with. What a rule names gets an error, not death, since QEMU tries some of
 * it and does without.
 */
#define _GNU_SOURCE
#include "cli/qemu_filter.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* The headers of the build may be older than the kernel. */
enum {
	NR_fchmodat2 = 452,
	NR_setxattrat = 463,
	NR_getxattrat = 464,
	NR_listxattrat = 465,
	NR_removexattrat = 466,
	NR_file_setattr = 469,
};

#define VALUES_MAX 5

/*
 * A call that fails, unless an argument has, of these bits, one of these values. The filter sees
 * the argument's lower half: all that the kernel takes of an int. A call may have several rules.
 */
struct rule {
	unsigned int nr;
	int error;
	unsigned int arg;
	uint32_t bits;
	uint32_t n, value[VALUES_MAX];
};

#define NEVER_NR(number, e)                  \
	{                                    \
		.nr = (number), .error = (e) \
	}
#define NEVER(name, e) NEVER_NR(SYS_##name, e)
#define ONLY(name, e, i, mask, ...)                                                   \
	{                                                                             \
		.nr = SYS_##name, .error = (e), .arg = (i), .bits = (mask),           \
		.n = ARRAY_SIZE(((uint32_t[]){__VA_ARGS__})), .value = {__VA_ARGS__}, \
	}

#define WHOLE       UINT32_MAX
#define SOCKET_TYPE 0xfu /* without SOCK_CLOEXEC and the like */

/* All forms of CLONE_NEW* that clone takes, but not those of threads. */
#define NEW_SPACES                                                                     \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | \
	 CLONE_NEWPID | CLONE_NEWNET)

static const struct rule rules[] = {
	/* Sockets are IP's. By type as well: protocol 0 is whatever is usual for a type, DCCP for
	 * its own. What is left out has a way to dial that Landlock does not see (MPTCP, SCTP). */
	ONLY(socket, EACCES, 0, WHOLE, AF_INET, AF_INET6),
	ONLY(socket, EACCES, 1, SOCKET_TYPE, SOCK_STREAM, SOCK_DGRAM),
	ONLY(socket, EACCES, 2, WHOLE, 0, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_ICMPV6),
	/* An end of another type sends to any socket in the file system. */
	ONLY(socketpair, EACCES, 0, WHOLE, AF_UNIX),
	ONLY(socketpair, EACCES, 1, SOCKET_TYPE, SOCK_STREAM),
	NEVER(io_uring_setup, ENOSYS), /* would make sockets of any kind */

	/* Namespaces. clone3's flags are in memory, where a filter does not see them: the C library
	 * makes do with clone. */
	ONLY(clone, EPERM, 0, NEW_SPACES, 0),
	NEVER(clone3, ENOSYS),
	NEVER(unshare, EPERM),
	NEVER(setns, EPERM),

	/* Files: Landlock keeps them from being opened, not from this. */
	NEVER(truncate, EPERM), /* before its version 3 */
	NEVER(chmod, EPERM),
	NEVER(fchmod, EPERM),
	NEVER(fchmodat, EPERM),
	NEVER_NR(NR_fchmodat2, EPERM),
	NEVER(chown, EPERM),
	NEVER(lchown, EPERM),
	NEVER(fchown, EPERM),
	NEVER(fchownat, EPERM),
	NEVER(utime, EPERM),
	NEVER(utimes, EPERM),
	NEVER(futimesat, EPERM),
	NEVER(utimensat, EPERM),
	NEVER(setxattr, EPERM),
	NEVER(lsetxattr, EPERM),
	NEVER(fsetxattr, EPERM),
	NEVER(removexattr, EPERM),
	NEVER(lremovexattr, EPERM),
	NEVER(fremovexattr, EPERM),
	NEVER_NR(NR_setxattrat, EPERM),
	NEVER_NR(NR_getxattrat, EPERM),
	NEVER_NR(NR_listxattrat, EPERM),
	NEVER_NR(NR_removexattrat, EPERM),
	NEVER_NR(NR_file_setattr, EPERM),
	NEVER(inotify_add_watch, EPERM),
	NEVER(fanotify_init, EPERM),
	NEVER(fanotify_mark, EPERM),
	NEVER(open_by_handle_at, EPERM),

	/* Other processes of its user. By a limit of its processor time one can be ended. */
	ONLY(prlimit64, EPERM, 0, WHOLE, 0),
	NEVER(ioprio_set, EPERM),
	NEVER(ptrace, EPERM),
	NEVER(process_vm_readv, EPERM),
	NEVER(process_vm_writev, EPERM),
	NEVER(process_madvise, EPERM),
	NEVER(pidfd_getfd, EPERM),

	/* What others share memory and speak by, and what they have in the kernel's keeping. */
	NEVER(shmget, EPERM),
	NEVER(shmat, EPERM),
	NEVER(shmctl, EPERM),
	NEVER(shmdt, EPERM),
	NEVER(semget, EPERM),
	NEVER(semop, EPERM),
	NEVER(semtimedop, EPERM),
	NEVER(semctl, EPERM),
	NEVER(msgget, EPERM),
	NEVER(msgsnd, EPERM),
	NEVER(msgrcv, EPERM),
	NEVER(msgctl, EPERM),
	NEVER(mq_open, EPERM),
	NEVER(mq_unlink, EPERM),
	NEVER(mq_timedsend, EPERM),
	NEVER(mq_timedreceive, EPERM),
	NEVER(mq_notify, EPERM),
	NEVER(mq_getsetattr, EPERM),
	NEVER(add_key, EPERM),
	NEVER(request_key, EPERM),
	NEVER(keyctl, EPERM),

	/* Large, and often where the kernel's faults are. */
	NEVER(bpf, EPERM),
	NEVER(perf_event_open, EPERM),
	NEVER(userfaultfd, EPERM),
};

/* Where nothing goes out: TCP alone, for the port that comes in, and none that dials. Landlock
 * knows of connect (version 4), but not that data can be sent along with the first packet. */
static const struct rule inward_rules[] = {
	ONLY(socket, EACCES, 1, SOCKET_TYPE, SOCK_STREAM),
	NEVER(connect, EACCES),
	ONLY(sendto, EACCES, 3, MSG_FASTOPEN, 0),
	ONLY(sendmsg, EACCES, 2, MSG_FASTOPEN, 0),
	ONLY(sendmmsg, EACCES, 3, MSG_FASTOPEN, 0),
};

#define RULE_MAX (5 + VALUES_MAX) /* of instructions */

struct program {
	struct sock_filter code[7 + RULE_MAX * (ARRAY_SIZE(rules) + ARRAY_SIZE(inward_rules))];
	unsigned short n;
};

#define X32_BIT 0x40000000u

#define FIELD(name) ((uint32_t)offsetof(struct seccomp_data, name))

static void add(struct program *p, unsigned int code, uint32_t k)
{
	p->code[p->n++] = (struct sock_filter)BPF_STMT((unsigned short)code, k);
}

static void load(struct program *p, uint32_t offset)
{
	add(p, BPF_LD | BPF_W | BPF_ABS, offset);
}

/* Passes over as many instructions where the comparison with k holds, or does not hold. */
static void skip(struct program *p, unsigned int comparison, uint32_t k, size_t holds, size_t fails)
{
	p->code[p->n++] = (struct sock_filter)BPF_JUMP(
		(unsigned short)(BPF_JMP | BPF_K | comparison), k, (uint8_t)holds, (uint8_t)fails);
}

static void finish(struct program *p, uint32_t what)
{
	add(p, BPF_RET | BPF_K, what);
}

static void add_rule(struct program *p, const struct rule *r)
{
	load(p, FIELD(nr));
	skip(p, BPF_JEQ, r->nr, 0, r->n ? 3 + r->n : 1);
	if (r->n) {
		load(p, FIELD(args) + r->arg * (uint32_t)sizeof(uint64_t));
		add(p, BPF_ALU | BPF_AND | BPF_K, r->bits);
	}
	for (size_t i = 0; i < r->n; i++)
		skip(p, BPF_JEQ, r->value[i], r->n - i, 0);
	finish(p, SECCOMP_RET_ERRNO | (uint32_t)r->error);
}

int qemu_filter(bool dials)
{
	struct program p = {.n = 0};
	struct sock_fprog f = {.filter = p.code};

	/* Of IA-32 and x32 no call at all. */
	load(&p, FIELD(arch));
	skip(&p, BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0);
	finish(&p, SECCOMP_RET_KILL_PROCESS);
	load(&p, FIELD(nr));
	skip(&p, BPF_JGE, X32_BIT, 0, 1);
	finish(&p, SECCOMP_RET_KILL_PROCESS);
	for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
		add_rule(&p, &rules[i]);
	for (size_t i = 0; !dials && i < ARRAY_SIZE(inward_rules); i++)
		add_rule(&p, &inward_rules[i]);
	finish(&p, SECCOMP_RET_ALLOW);
	f.len = p.n;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &f) < 0 ? -errno : 0;
}
