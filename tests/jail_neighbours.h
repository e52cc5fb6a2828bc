/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the calls that lie next to what the rules of a jail allow, each in a process of its own
 * behind its filter, and looks that the process is killed for it:
 *
 * - for each rule, the call that it is about with one of the bits changed that it compares, or the
 *   whole argument;
 * - every number of a system call, with arguments of zero.
 *
 * What the rules say is worked out by whoever includes this; calls that one of them allows are not
 * made. Takes -Wl,--wrap=seccomp_load: the jail is entered with a filter that is not installed.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/io.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
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

/* A jail: whether a rule of it allows a call; enters it, not 0: it cannot; ends in a way that it
 * allows. */
struct neighbourhood {
	bool (*is_allowed)(const struct call *c);
	int (*enter)(void);
	void (*end)(void);
	size_t made, survived;
};

/* The filter of the process. */
static struct sock_filter process_insns[4096];
static struct sock_fprog process_filter = {.filter = process_insns};

int __wrap_seccomp_load(scmp_filter_ctx ctx);
int __wrap_seccomp_load(scmp_filter_ctx ctx)
{
	_cleanup_fd int fd = memfd_create("filter", MFD_CLOEXEC);
	int64_t size;
	int rc = fd < 0 ? -errno : seccomp_export_bpf(ctx, fd);

	if (rc < 0)
		return rc;
	size = io_size(fd);
	if (size < 0 || (size_t)size > sizeof(process_insns))
		return -E2BIG;
	process_filter.len = (unsigned short)((size_t)size / sizeof(process_insns[0]));
	return io_pread_full(fd, process_insns, (size_t)size, 0);
}

static int enter_process_filter(void)
{
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &process_filter);
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

static bool all_equal(const struct scmp_arg_cmp *args, unsigned int n, const struct call *call)
{
	for (unsigned int k = 0; k < n; k++)
		if (!compares_equal(&args[k], call))
			return false;
	return true;
}

/* The status of a process that is in that jail and makes the call. */
static int status_after(const struct neighbourhood *n, const struct call *c)
{
	pid_t pid = fork();
	int status = -1;

	if (pid == 0) {
		if (n->enter() != 0)
			_exit(1);
		syscall(c->nr, c->a[0], c->a[1], c->a[2], c->a[3], c->a[4], c->a[5]);
		for (;;)
			n->end();
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		exit(2);
	return status;
}

static void try_call(struct neighbourhood *n, const struct call *c)
{
	int status;

	if (n->is_allowed(c))
		return;
	n->made++;
	status = status_after(n, c);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
		return;
	n->survived++;
	printf("%s %ld(%#lx, %#lx, %#lx, %#lx, %#lx): status %#x\n",
	       seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, (int)c->nr), c->nr, c->a[0],
	       c->a[1], c->a[2], c->a[3], c->a[4], (unsigned int)status);
}

/* One argument of the call becomes others; which of its bits count is the rule's business. */
static void try_argument(struct neighbourhood *n, struct call c, const struct scmp_arg_cmp *cmp)
{
	unsigned long right = c.a[cmp->arg];

	for (unsigned int bit = 0; bit < 64; bit++) {
		c.a[cmp->arg] = right ^ 1ul << bit;
		if (!compares_equal(cmp, &c))
			try_call(n, &c);
	}
	c.a[cmp->arg] = 0;
	try_call(n, &c);
	c.a[cmp->arg] = ~0ul;
	try_call(n, &c);
}

static void try_rule(struct neighbourhood *n, int nr, const struct scmp_arg_cmp *args,
		     unsigned int nargs)
{
	struct call c = {.nr = nr};

	for (unsigned int k = 0; k < nargs; k++)
		c.a[args[k].arg] = args[k].op == SCMP_CMP_EQ ? args[k].datum_a : args[k].datum_b;
	for (unsigned int k = 0; k < nargs; k++)
		try_argument(n, c, &args[k]);
}

/* What kills is the call, not the way to it. False, and it is told: not so. */
static bool can_live(const struct neighbourhood *n)
{
	const struct call nothing = {SYS_close, {~0ul}};

	if (n->is_allowed(&nothing) && status_after(n, &nothing) == 0)
		return true;
	printf("a call that is allowed kills\n");
	return false;
}

static void try_numbers(struct neighbourhood *n)
{
	for (long nr = 0; nr < NUMBERS; nr++)
		if (!UNFILTERED(nr))
			try_call(n, &(struct call){.nr = nr});
}
