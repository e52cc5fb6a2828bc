/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the calls that lie next to what the rules of the jail allow, each in a process of its own
 * behind the filters of a kind of thread, and looks that the process is killed for it:
 *
 * - for each rule, the call that it is about with one of the bits changed that it compares, or the
 *   whole argument;
 * - every number of a system call, with arguments of zero.
 *
 * What the rules say is worked out here; calls that one of them allows are not made.
 *
 *   vmm-jail-neighbours WHERE       WHERE: process, vcpu, leaf, leaf-vcpu
 *
 * Prints how many calls were made, and how many of them for the rules; before that the ones that
 * did not kill. Exit status: 0: all did.
 */
#define _GNU_SOURCE
#include "lib/cleanup.h"
#include "lib/io.h"
#include "vmm/jail/jail.h"
#include "vmm/jail/jail_rules.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NUMBERS 600l /* more than there are */

/*
 * uretprobe() and uprobe(), which the kernel lets past every filter (Linux 6.14, 6.18). They are
 * for code that the kernel itself has put into a process for a tracer, and an error or SIGILL
 * elsewhere.
 */
#define UNFILTERED(nr) ((nr) == 335 || (nr) == 336)

struct call {
	long nr;
	unsigned long a[6];
};

/* The filter of the process, which is not installed here. */
static struct sock_filter insns[4096];
static struct sock_fprog process = {.filter = insns};
static struct jail jail;
static size_t made, survived;

int __wrap_seccomp_load(scmp_filter_ctx ctx);
int __wrap_seccomp_load(scmp_filter_ctx ctx)
{
	_cleanup_fd int fd = memfd_create("filter", MFD_CLOEXEC);
	int64_t size;
	int rc = fd < 0 ? -errno : seccomp_export_bpf(ctx, fd);

	if (rc < 0)
		return rc;
	size = io_size(fd);
	if (size < 0 || (size_t)size > sizeof(insns))
		return -E2BIG;
	process.len = (unsigned short)((size_t)size / sizeof(insns[0]));
	return io_pread_full(fd, insns, (size_t)size, 0);
}

static bool compares_equal(const struct scmp_arg_cmp *c, const struct call *call)
{
	unsigned long a = call->a[c->arg];

	switch (c->op) {
	case SCMP_CMP_EQ:
		return a == c->datum_a;
	case SCMP_CMP_MASKED_EQ:
		return (a & c->datum_a) == c->datum_b;
	default:
		abort(); /* no rule has it */
	}
}

static bool has_rule(enum jail_kind kind, const struct call *call)
{
	const struct jail_rules *rules = jail_rules_of(kind);

	for (size_t i = 0; i < rules->n; i++) {
		const struct jail_rule *r = &rules->rule[i];
		bool equal = r->nr == call->nr && jail_rule_holds(kind, r);

		for (unsigned int k = 0; equal && k < r->nargs; k++)
			equal = compares_equal(&r->args[k], call);
		if (equal)
			return true;
	}
	return false;
}

/* Threads are in the process's, too. */
static bool is_allowed(enum jail_kind kind, const struct call *call)
{
	return has_rule(JAIL_PROCESS, call) && has_rule(kind, call);
}

/* Each kind may end in one of two ways. */
static void end(enum jail_kind kind)
{
	for (;;)
		syscall(kind == JAIL_PROCESS || kind == JAIL_LEAF ? SYS_exit_group : SYS_exit, 0);
}

/* The status of a process that is in that jail and makes the call. */
static int status_after(enum jail_kind kind, const struct call *c)
{
	pid_t pid = fork();
	int status = -1;

	if (pid == 0) {
		if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &process) < 0 ||
		    (kind != JAIL_PROCESS && jail_enter_thread(&jail, kind) < 0))
			_exit(1);
		syscall(c->nr, c->a[0], c->a[1], c->a[2], c->a[3], c->a[4], c->a[5]);
		end(kind);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		exit(2);
	return status;
}

static void try(enum jail_kind kind, const struct call *c)
{
	int status;

	if (is_allowed(kind, c))
		return;
	made++;
	status = status_after(kind, c);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
		return;
	survived++;
	printf("%s %ld(%#lx, %#lx, %#lx, %#lx, %#lx): status %#x\n",
	       seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, (int)c->nr), c->nr, c->a[0],
	       c->a[1], c->a[2], c->a[3], c->a[4], (unsigned int)status);
}

/* One argument of the call becomes others; which of its bits count is the rule's business. */
static void try_argument(enum jail_kind kind, struct call c, const struct scmp_arg_cmp *cmp)
{
	unsigned long right = c.a[cmp->arg];

	for (unsigned int bit = 0; bit < 64; bit++) {
		c.a[cmp->arg] = right ^ 1ul << bit;
		if (!compares_equal(cmp, &c))
			try(kind, &c);
	}
	c.a[cmp->arg] = 0;
	try(kind, &c);
	c.a[cmp->arg] = ~0ul;
	try(kind, &c);
}

static void try_rule(enum jail_kind kind, const struct jail_rule *r)
{
	struct call c = {.nr = r->nr};

	for (unsigned int k = 0; k < r->nargs; k++)
		c.a[r->args[k].arg] =
			r->args[k].op == SCMP_CMP_EQ ? r->args[k].datum_a : r->args[k].datum_b;
	for (unsigned int k = 0; k < r->nargs; k++)
		try_argument(kind, c, &r->args[k]);
}

static int try_all(enum jail_kind kind)
{
	const struct jail_rules *rules = jail_rules_of(kind);
	const struct call nothing = {SYS_close, {~0ul}};
	size_t for_rules;

	/* What kills is the call, not the way to it. */
	if (!is_allowed(kind, &nothing) || status_after(kind, &nothing) != 0) {
		printf("a call that is allowed kills\n");
		return 1;
	}
	for (size_t i = 0; i < rules->n; i++)
		if (jail_rule_holds(kind, &rules->rule[i]))
			try_rule(kind, &rules->rule[i]);
	for_rules = made;
	for (long nr = 0; nr < NUMBERS; nr++)
		if (!UNFILTERED(nr))
			try(kind, &(struct call){.nr = nr});
	printf("%zu calls, %zu for rules\n", made, for_rules);
	return survived ? 1 : 0;
}

int main(int argc, char **argv)
{
	static const char *const kinds[JAIL_KINDS] = {"process", "vcpu", "leaf", "leaf-vcpu"};
	struct err err = {0};

	if (jail_enter(&jail, false, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
		return 255;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (enum jail_kind kind = 0; argc == 2 && kind < JAIL_KINDS; kind++)
		if (strcmp(argv[1], kinds[kind]) == 0)
			return try_all(kind);
	return 2;
}
