/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For probes of jails: system calls by the two other ways into the kernel, whose numbers mean other
 * calls than those that a filter of x86-64 knows; and a thread that tells whether such a call has
 * ended the process or only the thread that made it.
 *
 * Both calls are close(-1) to a filter that looks at the number alone.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Exit status of a process of which the first thread alone has ended. */
#define BYSTANDER_LEFT 254

#define X32_BIT 0x40000000l

/* Of IA-32: read(-1, NULL, 0). */
static inline long foreign_int80(void)
{
	long rax = SYS_close;

	__asm__ volatile("int $0x80"
			 : "+a"(rax)
			 : "b"(-1l), "c"(0l), "d"(0l)
			 : "memory", "cc", "r8", "r9", "r10", "r11");
	return (int)rax < 0 ? -1 : 0;
}

static inline long foreign_x32(void)
{
	return syscall(X32_BIT | SYS_close, -1);
}

/* Whether this kernel has the way of foreign_int80(); who tries it elsewhere dies of SIGSEGV. */
static inline bool foreign_int80_exists(void)
{
	const struct rlimit no_core = {0, 0};
	pid_t pid = fork();
	int status = 0;

	if (pid == 0) {
		setrlimit(RLIMIT_CORE, &no_core);
		foreign_int80();
		_exit(0);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status);
}

static inline void *bystander_thread(void *arg)
{
	pthread_join((pthread_t)(uintptr_t)arg, NULL);
	_exit(BYSTANDER_LEFT);
}

/* By the first thread. 0 or an errno. */
static inline int bystander_start(void)
{
	pthread_t t;

	return pthread_create(&t, NULL, bystander_thread, (void *)(uintptr_t)pthread_self());
}
