/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules. Each line says who needs it. "libc" means glibc's: what it does by
 * itself around threads, locks and memory.
 */
#define _GNU_SOURCE
#include "vmm/jail/jail_rules.h"

#include "lib/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

/* Of an argument: it has this value; it has none but these bits; of the bits but `loose`, these. */
#define IS(i, v)                                \
	{                                       \
		(i), SCMP_CMP_EQ, (uint64_t)(v) \
	}
#define ONLY(i, bits)                                         \
	{                                                     \
		(i), SCMP_CMP_MASKED_EQ, ~(uint64_t)(bits), 0 \
	}
#define BUT(i, loose, v)                                                   \
	{                                                                  \
		(i), SCMP_CMP_MASKED_EQ, ~(uint64_t)(loose), (uint64_t)(v) \
	}

#define RULE(what, name, ...)                                                          \
	{                                                                              \
		.nr = SCMP_SYS(name), .action = (what),                                \
		.nargs = ARRAY_SIZE(((struct scmp_arg_cmp[]){__VA_ARGS__})), .args = { \
			__VA_ARGS__                                                    \
		}                                                                      \
	}
#define ALLOW(name)                                            \
	{                                                      \
		.nr = SCMP_SYS(name), .action = SCMP_ACT_ALLOW \
	}
#define ALLOW_IF(name, ...) RULE(SCMP_ACT_ALLOW, name, __VA_ARGS__)
#define IOCTL(request)      ALLOW_IF(ioctl, IS(1, request))
#define MADVISE(advice)     ALLOW_IF(madvise, IS(2, advice))
#define FUTEX(op, loose)    ALLOW_IF(futex, BUT(1, loose, op))

/* Of glibc: how threads are told that one of them changes the user. */
#define SIGSETXID 33

#define DATA_PROT (PROT_READ | PROT_WRITE)
#define MAP_FLAGS (MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE | MAP_STACK)
#define THREAD_FLAGS                                                                        \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_SIGHAND | CLONE_THREAD | \
	 CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

/* One rule a line. */
/* clang-format off */
static const struct jail_rule process_rules[] = {
	/* --- KVM: of /dev/kvm, a VM's descriptor, a vCPU's. No other device is ever held. --- */
	IOCTL(KVM_GET_API_VERSION), /* vm.c: that the descriptor handed over is KVM's */
	IOCTL(KVM_CHECK_EXTENSION), /* vm.c: that this KVM has what is needed */
	IOCTL(KVM_GET_VCPU_MMAP_SIZE), /* vm.c: size of a vCPU's run page */
	IOCTL(KVM_CREATE_VM), /* vm.c: at boot, and in each child */
	IOCTL(KVM_SET_USER_MEMORY_REGION), /* vm.c: RAM and root image */
	IOCTL(KVM_SET_TSS_ADDR), /* vm.c: three pages that Intel's need */
	IOCTL(KVM_SET_IDENTITY_MAP_ADDR), /* vm.c: and one more */
	IOCTL(KVM_ENABLE_CAP), /* vm.c: the split interrupt controller */
	IOCTL(KVM_CREATE_VCPU), /* vcpu.c */
	IOCTL(KVM_GET_SUPPORTED_CPUID), /* cpuid.c */
	IOCTL(KVM_SET_CPUID2), /* cpuid.c */
	IOCTL(KVM_GET_MSR_INDEX_LIST), /* state.c: what a fork must carry over */
	IOCTL(KVM_SET_FPU), /* regs.c: the first vCPU at boot */
	IOCTL(KVM_GET_DIRTY_LOG), /* vm.c: what a rehearsal has written */
	IOCTL(KVM_GET_CLOCK), /* state.c: a fork's save, and load in the child */
	IOCTL(KVM_SET_CLOCK),
	IOCTL(KVM_GET_MP_STATE),
	IOCTL(KVM_SET_MP_STATE),
	IOCTL(KVM_GET_REGS),
	IOCTL(KVM_SET_REGS), /* and regs.c at boot */
	IOCTL(KVM_GET_SREGS),
	IOCTL(KVM_SET_SREGS), /* and regs.c at boot */
	IOCTL(KVM_GET_XSAVE),
	IOCTL(KVM_SET_XSAVE),
	IOCTL(KVM_GET_XCRS),
	IOCTL(KVM_SET_XCRS),
	IOCTL(KVM_GET_DEBUGREGS),
	IOCTL(KVM_SET_DEBUGREGS),
	IOCTL(KVM_GET_LAPIC),
	IOCTL(KVM_SET_LAPIC),
	IOCTL(KVM_GET_MSRS),
	IOCTL(KVM_SET_MSRS),
	IOCTL(KVM_GET_DEVICE_ATTR), /* state.c: the TSC's offset */
	IOCTL(KVM_SET_DEVICE_ATTR),
	IOCTL(KVM_GET_VCPU_EVENTS),
	IOCTL(KVM_SET_VCPU_EVENTS),
	IOCTL(KVM_KVMCLOCK_CTRL), /* vcpu.c: the guest was stopped */
	IOCTL(KVM_SIGNAL_MSI), /* vm.c: interrupts of devices */
	IOCTL(KVM_RUN), /* vcpu.c */

	/* --- control socket and streams: UNIX sockets that were handed over --- */
	ALLOW_IF(recvmsg, IS(2, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)), /* fdpass.c: messages */
	/* fdpass.c: messages; vsock_conn.c: streams. Never sendmsg(): no descriptor leaves a VMM.
	 * Never MSG_OOB. Nobody is named: the other end is who it is. */
	ALLOW_IF(sendto, BUT(3, MSG_DONTWAIT, MSG_NOSIGNAL), IS(4, 0)),
	ALLOW_IF(recvfrom, IS(3, MSG_DONTWAIT), IS(4, 0)), /* vsock_conn.c: streams */
	ALLOW(shutdown), /* vsock_conn.c: half-closed streams */

	/* --- eventfds and epoll --- */
	ALLOW_IF(eventfd2, IS(1, EFD_CLOEXEC | EFD_NONBLOCK)), /* loop.c, machine.c, vsock.c */
	ALLOW_IF(epoll_create1, IS(0, EPOLL_CLOEXEC)), /* loop.c, vsock.c */
	ALLOW(epoll_ctl), /* loop.c, vsock.c */
	ALLOW(epoll_wait), /* loop.c, vsock.c */
	ALLOW(read), /* eventfds; fork.c: the gate */
	ALLOW(write), /* eventfds */

	/* --- files that were handed over: kernel, root image, console, layers of the disk --- */
	ALLOW(pread64), /* linux.c, elf.c: kernel, ramdisk */
	ALLOW(preadv), /* layer_file.c: reads of the disk */
	ALLOW(pwritev), /* layer_file.c: writes */
	ALLOW_IF(fallocate, IS(1, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)), /* discards */
	ALLOW(fdatasync), /* layer_file.c: flushes */
	ALLOW_IF(fcntl, IS(1, F_GET_SEALS)), /* rom.c */
	ALLOW_IF(fcntl, IS(1, F_GETFL)), /* layer_file.c: what a layer is open for */
	ALLOW(fstat), /* io.c: sizes, what a layer is */
	ALLOW(close), /* streams, layers, boot's descriptors */
	ALLOW_IF(close_range, IS(2, 0)), /* fork.c: what a child must not have */

	/* --- memory: never executable, never locked or of huge pages by name --- */
	ALLOW_IF(mmap, ONLY(2, DATA_PROT), ONLY(3, MAP_FLAGS)), /* RAM, devices, libc */
	ALLOW_IF(mprotect, ONLY(2, DATA_PROT)), /* libc: stacks of threads */
	ALLOW(munmap), /* gmem.c, console.c, libc */
	ALLOW(brk), /* libc: malloc */
	MADVISE(MADV_HUGEPAGE), /* gmem.c, rom.c */
	MADVISE(MADV_DONTDUMP), /* gmem.c */
	MADVISE(MADV_DONTFORK), /* vcpu.c: the run page */
	MADVISE(MADV_WIPEONFORK), /* vsock.c: bytes of streams */
	MADVISE(MADV_POPULATE_WRITE), /* hotset.c */
	MADVISE(MADV_DONTNEED), /* vsock_conn.c: a used ring; libc: a thread's stack at its end */
	/* libc from 2.42 on, which does with mprotect() what it is refused here */
	RULE(SCMP_ACT_ERRNO(EINVAL), madvise, IS(2, MADV_GUARD_INSTALL)),

	/* --- processes and threads: with exactly these flags, so without namespaces --- */
	ALLOW_IF(clone, IS(0, CLONE_PARENT | SIGCHLD), IS(1, 0)), /* fork.c */
	ALLOW_IF(clone, IS(0, THREAD_FLAGS)), /* libc: pthread_create() */
	/* libc: the flags lie in memory, where no filter sees them. It goes on with clone(). So there
	 * is no CLONE_INTO_CGROUP either: the daemon moves a child (daemon/vm_group.h). */
	RULE(SCMP_ACT_ERRNO(ENOSYS), clone3),
	ALLOW(set_robust_list), /* libc: start of a thread */
	ALLOW(rseq), /* libc: start of a thread */
	ALLOW_IF(prctl, IS(0, PR_SET_NAME)), /* vcpu.c: name of a thread */
	ALLOW_IF(prctl, IS(0, PR_SET_PDEATHSIG), IS(1, SIGKILL)), /* ctl.c: a child's */
	ALLOW_IF(seccomp, IS(0, SECCOMP_SET_MODE_FILTER), IS(1, 0)), /* jail.c: vCPU threads */
	ALLOW(exit), /* libc: end of a thread */
	ALLOW(exit_group), /* main.c, ctl.c */

	/* --- signals: the kick of a vCPU. Landlock keeps it in the VMMs of one template. --- */
	ALLOW_IF(rt_sigaction, IS(0, SIGUSR1)), /* vcpu.c */
	ALLOW_IF(rt_sigaction, IS(0, SIGSETXID)), /* libc: the first thread */
	ALLOW(rt_sigprocmask), /* vcpu.c; libc: around a thread's start and end */
	ALLOW(rt_sigreturn), /* the handler's return */
	ALLOW(getpid), /* libc: pthread_kill() */
	ALLOW_IF(tgkill, IS(2, SIGUSR1)), /* libc: pthread_kill() */

	/* --- locks and time --- */
	FUTEX(FUTEX_WAIT, FUTEX_PRIVATE_FLAG), /* mutexes */
	FUTEX(FUTEX_WAKE, FUTEX_PRIVATE_FLAG), /* mutexes, conditions */
	FUTEX(FUTEX_WAIT_BITSET, FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME), /* conditions */
	ALLOW(clock_gettime), /* without a vDSO */
	ALLOW(restart_syscall), /* a wait with a deadline, after SIGSTOP and SIGCONT */
};

static const struct jail_rule vcpu_rules[] = {
	/* --- KVM --- */
	IOCTL(KVM_RUN),
	IOCTL(KVM_SIGNAL_MSI), /* interrupts of devices */
	IOCTL(KVM_KVMCLOCK_CTRL), /* vcpu_stood() */

	/* --- streams, on a notification of the vsock's queues --- */
	ALLOW_IF(sendto, IS(3, MSG_DONTWAIT | MSG_NOSIGNAL), IS(4, 0)),
	ALLOW_IF(recvfrom, IS(3, MSG_DONTWAIT), IS(4, 0)),
	ALLOW(shutdown), /* half-closed streams */
	ALLOW(epoll_ctl), /* what a stream waits for */
	ALLOW(close), /* a stream's end; a layer that holds nothing any more */
	MADVISE(MADV_DONTNEED), /* the ring of a stream that ends; libc: the thread's own stack */
	ALLOW(write), /* wakes the loop */

	/* --- the disk, on a notification of its queue --- */
	ALLOW(preadv),
	ALLOW(pwritev),
	ALLOW_IF(fallocate, IS(1, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)),
	ALLOW(fdatasync),

	/* --- the thread itself --- */
	FUTEX(FUTEX_WAIT, FUTEX_PRIVATE_FLAG),
	FUTEX(FUTEX_WAKE, FUTEX_PRIVATE_FLAG),
	FUTEX(FUTEX_WAIT_BITSET, FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME), /* parked */
	ALLOW(rt_sigreturn), /* the kick */
	ALLOW(rt_sigprocmask), /* libc: end of the thread */
	ALLOW(exit), /* libc: end of the thread */
};

/* clang-format on */

const struct jail_rules jail_process_rules = {process_rules, ARRAY_SIZE(process_rules)};
const struct jail_rules jail_vcpu_rules = {vcpu_rules, ARRAY_SIZE(vcpu_rules)};
