/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules. Each line says when it is needed, what is allowed, and who needs it. "libc" means
 * glibc's: what it does by itself around threads, locks and memory.
 */
#define _GNU_SOURCE
#include "vmm/jail/jail_rules.h"

#include "lib/cleanup.h"
#include "vmm/core/vm.h"

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

/* What is allowed. */
#define RULE(what, name, ...)                   \
	.nr = SCMP_SYS(name), .action = (what), \
	.nargs = ARRAY_SIZE(((struct scmp_arg_cmp[]){__VA_ARGS__})), .args = {__VA_ARGS__}
#define ALLOW(name)         .nr = SCMP_SYS(name), .action = SCMP_ACT_ALLOW
#define ALLOW_IF(name, ...) RULE(SCMP_ACT_ALLOW, name, __VA_ARGS__)
#define IOCTL(request)      ALLOW_IF(ioctl, IS(1, request))
#define MADVISE(advice)     ALLOW_IF(madvise, IS(2, advice))
#define FUTEX(op, loose)    ALLOW_IF(futex, BUT(1, loose, op))

/* When it is needed: the first column of the tables (enum jail_phase). */
#define PHASE(when, ...)                   \
	{                                  \
		.phase = when, __VA_ARGS__ \
	}
#define MAKE(...)   PHASE(JAIL_MAKE, __VA_ARGS__)
#define THREAD(...) PHASE(JAIL_THREAD, __VA_ARGS__)
#define RUN(...)    PHASE(JAIL_RUN, __VA_ARGS__)

/* Of glibc: how threads are told that one of them changes the user. */
#define SIGSETXID 33

#define DATA_PROT (PROT_READ | PROT_WRITE)
#define MAP_FLAGS (MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE | MAP_STACK)

/* One rule a line. */
/* clang-format off */
static const struct jail_rule process_rules[] = {
	/* --- KVM: of /dev/kvm, a VM's descriptor, a vCPU's. No other device is ever held. --- */
	MAKE(IOCTL(KVM_GET_API_VERSION)), /* vm.c: that the descriptor handed over is KVM's */
	MAKE(IOCTL(KVM_CHECK_EXTENSION)), /* vm.c: that this KVM has what is needed */
	MAKE(IOCTL(KVM_GET_VCPU_MMAP_SIZE)), /* vm.c: size of a vCPU's run page */
	MAKE(IOCTL(KVM_CREATE_VM)), /* vm.c: at boot, and in each child */
	MAKE(IOCTL(KVM_X86_SET_MSR_FILTER)), /* msr_filter.c */
	MAKE(IOCTL(KVM_SET_USER_MEMORY_REGION)), /* vm.c: RAM and root image */
	MAKE(IOCTL(KVM_SET_TSS_ADDR)), /* vm.c: three pages that Intel's need */
	MAKE(IOCTL(KVM_SET_IDENTITY_MAP_ADDR)), /* vm.c: and one more */
	MAKE(IOCTL(KVM_ENABLE_CAP)), /* vm.c: irqs in two halves, no counters; cpuid.c: no features but those shown */
	MAKE(IOCTL(KVM_CREATE_VCPU)), /* vcpu.c */
	MAKE(IOCTL(KVM_GET_SUPPORTED_CPUID)), /* cpuid.c */
	MAKE(IOCTL(KVM_SET_CPUID2)), /* cpuid.c */
	MAKE(IOCTL(KVM_GET_MSR_INDEX_LIST)), /* state.c: what a fork must carry over */
	MAKE(IOCTL(KVM_SET_FPU)), /* regs.c: the first vCPU at boot */
	MAKE(IOCTL(KVM_GET_DIRTY_LOG)), /* vm.c: what a rehearsal has written */
	MAKE(IOCTL(KVM_GET_CLOCK)), /* state.c: a fork's save, and load in the child */
	MAKE(IOCTL(KVM_SET_CLOCK)),
	MAKE(IOCTL(KVM_GET_MP_STATE)),
	MAKE(IOCTL(KVM_SET_MP_STATE)),
	MAKE(IOCTL(KVM_GET_REGS)),
	MAKE(IOCTL(KVM_SET_REGS)), /* and regs.c at boot */
	MAKE(IOCTL(KVM_GET_SREGS)),
	MAKE(IOCTL(KVM_SET_SREGS)), /* and regs.c at boot */
	MAKE(IOCTL(KVM_GET_XSAVE)),
	MAKE(IOCTL(KVM_SET_XSAVE)),
	MAKE(IOCTL(KVM_GET_XCRS)),
	MAKE(IOCTL(KVM_SET_XCRS)),
	MAKE(IOCTL(KVM_GET_DEBUGREGS)),
	MAKE(IOCTL(KVM_SET_DEBUGREGS)),
	MAKE(IOCTL(KVM_GET_LAPIC)),
	MAKE(IOCTL(KVM_SET_LAPIC)),
	MAKE(IOCTL(KVM_GET_MSRS)),
	MAKE(IOCTL(KVM_SET_MSRS)),
	MAKE(IOCTL(KVM_GET_DEVICE_ATTR)), /* state.c: the TSC's offset */
	MAKE(IOCTL(KVM_SET_DEVICE_ATTR)),
	MAKE(IOCTL(KVM_GET_VCPU_EVENTS)),
	MAKE(IOCTL(KVM_SET_VCPU_EVENTS)),
	MAKE(IOCTL(KVM_KVMCLOCK_CTRL)), /* vcpu.c: the guest was stopped */
	RUN(IOCTL(KVM_SIGNAL_MSI)), /* vm.c: interrupts of devices */
	THREAD(IOCTL(KVM_RUN)), /* vcpu.c */
	THREAD(IOCTL(VM_PRE_FAULT_MEMORY)), /* vm.c: pages that the guest is about to need */

	/* --- control socket and streams: UNIX sockets that were handed over --- */
	RUN(ALLOW_IF(recvmsg, IS(2, MSG_CMSG_CLOEXEC | MSG_DONTWAIT))), /* fdpass.c: messages */
	/* fdpass.c: messages; vsock_conn.c: streams. Never sendmsg(): no descriptor leaves a VMM.
	 * Never MSG_OOB. Nobody is named: the other end is who it is. */
	RUN(ALLOW_IF(sendto, BUT(3, MSG_DONTWAIT, MSG_NOSIGNAL), IS(4, 0))),
	RUN(ALLOW_IF(recvfrom, IS(3, MSG_DONTWAIT), IS(4, 0))), /* vsock_conn.c: streams */
	RUN(ALLOW(shutdown)), /* vsock_conn.c: half-closed streams */

	/* --- eventfds and epoll --- */
	MAKE(ALLOW_IF(eventfd2, IS(1, EFD_CLOEXEC | EFD_NONBLOCK))), /* loop.c, machine.c, vsock.c */
	MAKE(ALLOW_IF(epoll_create1, IS(0, EPOLL_CLOEXEC))), /* loop.c, vsock.c */
	RUN(ALLOW(epoll_ctl)), /* loop.c, vsock.c */
	RUN(ALLOW(epoll_wait)), /* loop.c, vsock.c */
	RUN(ALLOW(read)), /* eventfds; fork.c: the gate */
	RUN(ALLOW(write)), /* eventfds */

	/* --- files that were handed over: kernel, root image, console, layers of the disk --- */
	MAKE(ALLOW(pread64)), /* linux.c, elf.c: kernel, ramdisk */
	RUN(ALLOW(preadv)), /* layer_file.c: reads of the disk */
	RUN(ALLOW(pwritev)), /* layer_file.c: writes */
	RUN(ALLOW_IF(fallocate, IS(1, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))), /* discards */
	RUN(ALLOW(fdatasync)), /* layer_file.c: flushes */
	MAKE(ALLOW_IF(fcntl, IS(1, F_GET_SEALS))), /* rom.c */
	MAKE(ALLOW_IF(fcntl, IS(1, F_GETFL))), /* layer_file.c: what a layer is open for */
	RUN(ALLOW(fstat)), /* io.c: sizes, what a layer is */
	RUN(ALLOW(close)), /* streams, layers, boot's descriptors */
	MAKE(ALLOW_IF(close_range, IS(2, 0))), /* fork.c: what a child must not have */

	/* --- memory: never executable, never locked or of huge pages by name --- */
	MAKE(ALLOW_IF(mmap, ONLY(2, DATA_PROT), ONLY(3, MAP_FLAGS))), /* RAM, devices, libc */
	MAKE(ALLOW_IF(mprotect, ONLY(2, DATA_PROT))), /* libc: stacks of threads */
	MAKE(ALLOW(munmap)), /* gmem.c, console.c, libc */
	MAKE(ALLOW(brk)), /* libc: malloc */
	MAKE(MADVISE(MADV_HUGEPAGE)), /* gmem.c, rom.c */
	MAKE(MADVISE(MADV_DONTDUMP)), /* gmem.c */
	MAKE(MADVISE(MADV_DONTFORK)), /* vcpu.c: the run page */
	MAKE(MADVISE(MADV_WIPEONFORK)), /* vsock.c: bytes of streams */
	RUN(MADVISE(MADV_POPULATE_WRITE)), /* hotset.c */
	RUN(MADVISE(MADV_DONTNEED)), /* vsock_conn.c: a used ring; libc: a thread's stack at its end */
	/* libc from 2.42 on, which does with mprotect() what it is refused here */
	MAKE(RULE(SCMP_ACT_ERRNO(EINVAL), madvise, IS(2, MADV_GUARD_INSTALL))),

	/* --- processes and threads: with exactly these flags, so without namespaces --- */
	MAKE(ALLOW_IF(clone, IS(0, CLONE_PARENT | SIGCHLD), IS(1, 0))), /* fork.c */
	MAKE(ALLOW_IF(clone, IS(0, JAIL_THREAD_FLAGS))), /* libc: pthread_create(); vcpu.c: a child's */
	/* libc: the flags lie in memory, where no filter sees them. It goes on with clone(). So there
	 * is no CLONE_INTO_CGROUP either: the daemon moves a child (daemon/vm_group.h). */
	MAKE(RULE(SCMP_ACT_ERRNO(ENOSYS), clone3)),
	MAKE(ALLOW(set_robust_list)), /* libc: start of a thread */
	MAKE(ALLOW(rseq)), /* libc: start of a thread */
	MAKE(ALLOW_IF(prctl, IS(0, PR_SET_NAME))), /* vcpu.c: name of a thread */
	MAKE(ALLOW_IF(prctl, IS(0, PR_SET_PDEATHSIG), IS(1, SIGKILL))), /* ctl.c: a child's */
	MAKE(ALLOW_IF(seccomp, IS(0, SECCOMP_SET_MODE_FILTER), IS(1, 0))), /* jail.c: vCPU threads */
	THREAD(ALLOW(exit)), /* libc: end of a thread */
	RUN(ALLOW(exit_group)), /* main.c, ctl.c */

	/* --- signals: the kick of a vCPU. Landlock keeps it in the VMMs of one template. --- */
	MAKE(ALLOW_IF(rt_sigaction, IS(0, SIGUSR1))), /* vcpu.c */
	MAKE(ALLOW_IF(rt_sigaction, IS(0, SIGSETXID))), /* libc: the first thread */
	MAKE(ALLOW(rt_sigprocmask)), /* vcpu.c; libc: around a thread's start and end */
	MAKE(ALLOW(rt_sigreturn)), /* the handler's return */
	MAKE(ALLOW(gettid)), /* vcpu.c: whom to kick */
	MAKE(ALLOW(getpid)), /* vcpu.c: the kick */
	MAKE(ALLOW_IF(tgkill, IS(2, SIGUSR1))), /* vcpu.c: the kick */

	/* --- locks and time --- */
	RUN(FUTEX(FUTEX_WAIT, FUTEX_PRIVATE_FLAG)), /* mutexes */
	RUN(FUTEX(FUTEX_WAKE, FUTEX_PRIVATE_FLAG)), /* mutexes, conditions, device_lock.c */
	MAKE(FUTEX(FUTEX_WAIT_BITSET, FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)), /* conditions */
	RUN(ALLOW(clock_gettime)), /* without a vDSO */
	MAKE(ALLOW(restart_syscall)), /* a wait with a deadline, after SIGSTOP and SIGCONT */
};

static const struct jail_rule vcpu_rules[] = {
	/* --- KVM --- */
	RUN(IOCTL(KVM_RUN)),
	RUN(IOCTL(VM_PRE_FAULT_MEMORY)), /* pages that the guest is about to need */
	RUN(IOCTL(KVM_SIGNAL_MSI)), /* interrupts of devices */
	MAKE(IOCTL(KVM_KVMCLOCK_CTRL)), /* vcpu_stood() */

	/* --- streams, on a notification of the vsock's queues --- */
	RUN(ALLOW_IF(sendto, IS(3, MSG_DONTWAIT | MSG_NOSIGNAL), IS(4, 0))),
	RUN(ALLOW_IF(recvfrom, IS(3, MSG_DONTWAIT), IS(4, 0))),
	RUN(ALLOW(shutdown)), /* half-closed streams */
	RUN(ALLOW(epoll_ctl)), /* what a stream waits for */
	RUN(ALLOW(close)), /* a stream's end; a layer that holds nothing any more */
	RUN(MADVISE(MADV_DONTNEED)), /* the ring of a stream that ends; libc: the thread's own stack */
	RUN(ALLOW(write)), /* wakes the loop */

	/* --- the disk, on a notification of its queue --- */
	RUN(ALLOW(preadv)),
	RUN(ALLOW(pwritev)),
	RUN(ALLOW_IF(fallocate, IS(1, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))),
	RUN(ALLOW(fdatasync)),

	/* --- the thread itself --- */
	RUN(FUTEX(FUTEX_WAIT, FUTEX_PRIVATE_FLAG)), /* mutexes; parked; device_lock.c */
	RUN(FUTEX(FUTEX_WAKE, FUTEX_PRIVATE_FLAG)),
	MAKE(ALLOW(rt_sigreturn)), /* the kick */
	RUN(ALLOW(rt_sigprocmask)), /* libc: end of the thread */
	RUN(ALLOW(exit)), /* libc: end of the thread */
};

/* clang-format on */

static const struct jail_rules process = {process_rules, ARRAY_SIZE(process_rules)};
static const struct jail_rules vcpu = {vcpu_rules, ARRAY_SIZE(vcpu_rules)};

static bool of_leaf(enum jail_kind kind)
{
	return kind == JAIL_LEAF || kind == JAIL_LEAF_VCPU;
}

const struct jail_rules *jail_rules_of(enum jail_kind kind)
{
	return kind == JAIL_VCPU || kind == JAIL_LEAF_VCPU ? &vcpu : &process;
}

bool jail_rule_holds(enum jail_kind kind, const struct jail_rule *r)
{
	return !of_leaf(kind) || r->phase == JAIL_RUN;
}
