/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls that jail_probe.c tries. Descriptor 0 and a page of zeros
 * stand for what would be at stake.
 */
#define _GNU_SOURCE
#include "jail_probe.h"

#include "lib/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define THREAD_FLAGS 0x3d0f00ul /* as of pthread_create() */
#define STR(s)       ((unsigned long)(uintptr_t)(s))

/* For pointers of system calls that a hole in the filter would let through. */
char page[4096] __attribute__((aligned(4096)));

/* What no thread of a VMM may do. */
static const struct probe anywhere[] = {
	/* files */
	{"open", SYS_open, {STR("/")}},
	{"openat", SYS_openat, {(unsigned long)AT_FDCWD, STR("/"), O_RDONLY}},
	{"openat2", SYS_openat2, {(unsigned long)AT_FDCWD, STR("/"), STR(page), 24}},
	{"creat", SYS_creat, {STR("/tmp/x"), 0600}},
	{"stat", SYS_stat, {STR("/"), STR(page)}},
	{"newfstatat", SYS_newfstatat, {(unsigned long)AT_FDCWD, STR("/"), STR(page), 0}},
	{"newfstatat-empty", SYS_newfstatat, {0, STR(""), STR(page), AT_EMPTY_PATH}},
	{"statx", SYS_statx, {(unsigned long)AT_FDCWD, STR("/"), 0, STATX_BASIC_STATS, STR(page)}},
	{"access", SYS_access, {STR("/"), 0}},
	{"readlink", SYS_readlink, {STR("/proc/self/exe"), STR(page), 100}},
	{"getdents64", SYS_getdents64, {0, STR(page), 4096}},
	{"unlink", SYS_unlink, {STR("/tmp/x")}},
	{"mkdir", SYS_mkdir, {STR("/tmp/x"), 0700}},
	{"rename", SYS_rename, {STR("/tmp/x"), STR("/tmp/y")}},
	{"chmod", SYS_chmod, {STR("/tmp/x"), 0}},
	{"chdir", SYS_chdir, {STR("/")}},
	{"ftruncate", SYS_ftruncate, {0, 0}},
	{"memfd", SYS_memfd_create, {STR("x"), 0}},
	{"open-by-handle", SYS_open_by_handle_at, {0, STR(page), O_RDONLY}},
	{"dup", SYS_dup, {0}},
	{"pipe", SYS_pipe2, {STR(page), 0}},
	{"sendfile", SYS_sendfile, {0, 0, 0, 1}},
	{"splice", SYS_splice, {0, 0, 0, 0, 1, 0}},
	{"inotify", SYS_inotify_init1, {0}},
	{"fanotify", SYS_fanotify_init, {0, 0}},
	{"fallocate-grow", SYS_fallocate, {0, 0, 0, 1}},
	{"fallocate-collapse", SYS_fallocate, {0, FALLOC_FL_COLLAPSE_RANGE, 0, 4096}},
	{"fcntl-setfl", SYS_fcntl, {0, F_SETFL, 0}},
	{"fcntl-dupfd", SYS_fcntl, {0, F_DUPFD, 0}},
	{"fcntl-setown", SYS_fcntl, {0, F_SETOWN, 1}},
	{"fcntl-lease", SYS_fcntl, {0, F_SETLEASE, F_WRLCK}},
	{"fcntl-add-seals", SYS_fcntl, {0, F_ADD_SEALS, F_SEAL_WRITE}},
	{"fcntl-pipe-size", SYS_fcntl, {0, F_SETPIPE_SZ, 1 << 20}},
	/* sockets */
	{"socket-inet", SYS_socket, {AF_INET, SOCK_STREAM}},
	{"socket-unix", SYS_socket, {AF_UNIX, SOCK_STREAM}},
	{"socket-netlink", SYS_socket, {AF_NETLINK, SOCK_RAW}},
	{"socket-packet", SYS_socket, {AF_PACKET, SOCK_RAW}},
	{"socket-vsock", SYS_socket, {AF_VSOCK, SOCK_STREAM}},
	{"socketpair", SYS_socketpair, {AF_UNIX, SOCK_STREAM, 0, STR(page)}},
	{"connect", SYS_connect, {0, STR(page), 16}},
	{"bind", SYS_bind, {0, STR(page), 16}},
	{"listen", SYS_listen, {0, 1}},
	{"accept", SYS_accept, {0}},
	{"accept4", SYS_accept4, {0}},
	{"setsockopt", SYS_setsockopt, {0, SOL_SOCKET, SO_RCVBUF, STR(page), 4}},
	{"getsockopt", SYS_getsockopt, {0, SOL_SOCKET, SO_TYPE, STR(page), STR(page + 8)}},
	{"sendmsg", SYS_sendmsg, {0, STR(page), MSG_NOSIGNAL}},
	{"sendmmsg", SYS_sendmmsg, {0, STR(page), 1, MSG_NOSIGNAL}},
	{"recvmmsg", SYS_recvmmsg, {0, STR(page), 1, MSG_DONTWAIT}},
	{"recvmsg-open", SYS_recvmsg, {0, STR(page), MSG_DONTWAIT}}, /* without close-on-exec */
	{"recvmsg-oob", SYS_recvmsg, {0, STR(page), MSG_CMSG_CLOEXEC | MSG_DONTWAIT | MSG_OOB}},
	{"send-oob", SYS_sendto, {0, STR(page), 1, MSG_NOSIGNAL | MSG_DONTWAIT | MSG_OOB}},
	{"send-signal", SYS_sendto, {0, STR(page), 1, MSG_DONTWAIT}},
	{"sendto-somebody",
	 SYS_sendto,
	 {0, STR(page), 1, MSG_NOSIGNAL | MSG_DONTWAIT, STR(page), 16}},
	{"recvfrom-somebody",
	 SYS_recvfrom,
	 {0, STR(page), 1, MSG_DONTWAIT, STR(page), STR(page + 128)}},
	{"recv-oob", SYS_recvfrom, {0, STR(page), 1, MSG_DONTWAIT | MSG_OOB}},
	{"recv-peek", SYS_recvfrom, {0, STR(page), 1, MSG_DONTWAIT | MSG_PEEK}},
	/* processes and threads */
	{"execve", SYS_execve, {STR("/bin/true"), STR(page), STR(page)}},
	{"execveat", SYS_execveat, {0, STR(""), STR(page), STR(page), AT_EMPTY_PATH}},
	{"fork", SYS_fork, {0}},
	{"vfork", SYS_vfork, {0}},
	{"clone-fork", SYS_clone, {SIGCHLD}},
	{"clone-newuser", SYS_clone, {CLONE_NEWUSER | SIGCHLD}},
	{"clone-newuser-sibling", SYS_clone, {CLONE_NEWUSER | CLONE_PARENT | SIGCHLD}},
	{"clone-newpid", SYS_clone, {CLONE_NEWPID | CLONE_PARENT | SIGCHLD}},
	{"clone-vm", SYS_clone, {CLONE_VM | CLONE_PARENT | SIGCHLD}},
	{"clone-stack", SYS_clone, {CLONE_PARENT | SIGCHLD, STR(page + 2048)}},
	{"clone-untraced", SYS_clone, {CLONE_UNTRACED | CLONE_PARENT | SIGCHLD}},
	{"clone-thread-newns", SYS_clone, {THREAD_FLAGS | CLONE_NEWNS, STR(page + 2048)}},
	{"unshare", SYS_unshare, {CLONE_NEWUSER}},
	{"setns", SYS_setns, {0, 0}},
	{"ptrace-me", SYS_ptrace, {PTRACE_TRACEME}},
	{"ptrace", SYS_ptrace, {PTRACE_ATTACH, 1}},
	{"process_vm_readv", SYS_process_vm_readv, {1, STR(page), 0, STR(page), 0, 0}},
	{"process_vm_writev", SYS_process_vm_writev, {1, STR(page), 0, STR(page), 0, 0}},
	{"process_madvise", SYS_process_madvise, {0, STR(page), 0, MADV_COLD, 0}},
	{"kcmp", SYS_kcmp, {1, 1, 0, 0, 0}},
	{"pidfd_open", SYS_pidfd_open, {1, 0}},
	{"pidfd_getfd", SYS_pidfd_getfd, {0, 0, 0}},
	{"kill", SYS_kill, {1, 0}},
	{"tkill", SYS_tkill, {1, 0}},
	{"tgkill-term", SYS_tgkill, {1, 1, SIGTERM}},
	{"tgkill-kill", SYS_tgkill, {1, 1, SIGKILL}},
	{"rt_sigqueueinfo", SYS_rt_sigqueueinfo, {1, SIGUSR1, STR(page)}},
	{"sigaction-segv", SYS_rt_sigaction, {SIGSEGV, 0, 0, 8}},
	{"sigaction-sys", SYS_rt_sigaction, {SIGSYS, 0, 0, 8}},
	{"sigaltstack", SYS_sigaltstack, {0, 0}},
	{"wait4", SYS_wait4, {(unsigned long)-1, 0, 1, 0}},
	{"setpgid", SYS_setpgid, {0, 0}},
	{"setsid", SYS_setsid, {0}},
	{"setpriority", SYS_setpriority, {0, 0, 1}},
	{"sched_setaffinity", SYS_sched_setaffinity, {0, 8, STR(page)}},
	{"sched_setscheduler", SYS_sched_setscheduler, {0, 0, STR(page)}},
	{"prlimit", SYS_prlimit64, {0, RLIMIT_NOFILE, 0, STR(page)}},
	{"arch_prctl", SYS_arch_prctl, {0x1002, 0}},
	{"set_tid_address", SYS_set_tid_address, {0}},
	/* prctl */
	{"prctl-dumpable", SYS_prctl, {PR_SET_DUMPABLE, 1}},
	{"prctl-keepcaps", SYS_prctl, {PR_SET_KEEPCAPS, 1}},
	{"prctl-ptracer", SYS_prctl, {PR_SET_PTRACER, (unsigned long)-1}},
	{"prctl-seccomp", SYS_prctl, {PR_SET_SECCOMP, SECCOMP_MODE_FILTER, STR(page)}},
	{"prctl-mm", SYS_prctl, {PR_SET_MM, 1, 0}},
	{"prctl-subreaper", SYS_prctl, {PR_SET_CHILD_SUBREAPER, 1}},
	{"prctl-speculation", SYS_prctl, {PR_SET_SPECULATION_CTRL, 0, PR_SPEC_ENABLE}},
	{"prctl-no-death", SYS_prctl, {PR_SET_PDEATHSIG, 0}},
	{"prctl-high-bits", SYS_prctl, {PR_SET_NAME | 1ul << 32, STR(page)}},
	/* privileges and the machine */
	{"personality", SYS_personality, {READ_IMPLIES_EXEC}},
	{"setuid", SYS_setuid, {0}},
	{"setgroups", SYS_setgroups, {0, 0}},
	{"capset", SYS_capset, {STR(page), STR(page)}},
	{"chroot", SYS_chroot, {STR("/")}},
	{"pivot_root", SYS_pivot_root, {STR("/"), STR("/")}},
	{"mount", SYS_mount, {STR("x"), STR("/"), STR("tmpfs"), 0, 0}},
	{"umount", SYS_umount2, {STR("/proc"), MNT_DETACH}},
	{"fsopen", SYS_fsopen, {STR("tmpfs"), 0}},
	{"reboot", SYS_reboot, {0, 0, 0, 0}},
	{"init_module", SYS_init_module, {STR(page), 0, STR("")}},
	{"kexec_load", SYS_kexec_load, {0, 0, 0, 0}},
	{"iopl", SYS_iopl, {3}},
	{"bpf", SYS_bpf, {0, 0, 0}},
	{"perf_event_open", SYS_perf_event_open, {STR(page), 0, 0, (unsigned long)-1, 0}},
	{"io_uring_setup", SYS_io_uring_setup, {1, STR(page)}},
	{"io_uring_enter", SYS_io_uring_enter, {0, 0, 0, 0, 0, 0}},
	{"io_setup", SYS_io_setup, {1, STR(page)}},
	{"userfaultfd", SYS_userfaultfd, {0}},
	{"keyctl", SYS_keyctl, {0, 0, 0, 0, 0}},
	{"add_key", SYS_add_key, {STR("user"), STR("x"), STR(page), 1, (unsigned long)-3}},
	{"shmget", SYS_shmget, {0, 4096, 0}},
	{"msgget", SYS_msgget, {0, 0}},
	{"mq_open", SYS_mq_open, {STR("x"), O_RDONLY}},
	{"timer_create", SYS_timer_create, {0, 0, STR(page)}},
	{"timerfd", SYS_timerfd_create, {CLOCK_MONOTONIC, 0}},
	{"clock_settime", SYS_clock_settime, {CLOCK_REALTIME, STR(page)}},
	{"seccomp-listener",
	 SYS_seccomp,
	 {SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, STR(page)}},
	{"seccomp-strict", SYS_seccomp, {SECCOMP_SET_MODE_STRICT, 0, 0}},
	{"landlock", SYS_landlock_create_ruleset, {0, 0, 1}},
	/* memory */
	{"mmap-exec",
	 SYS_mmap,
	 {0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, (unsigned long)-1, 0}},
	{"mmap-locked",
	 SYS_mmap,
	 {0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, (unsigned long)-1, 0}},
	{"mmap-hugetlb",
	 SYS_mmap,
	 {0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, (unsigned long)-1, 0}},
	{"mmap-growsdown",
	 SYS_mmap,
	 {0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, (unsigned long)-1, 0}},
	{"mprotect-exec", SYS_mprotect, {STR(page), 4096, PROT_READ | PROT_EXEC}},
	{"mprotect-growsdown", SYS_mprotect, {STR(page), 4096, PROT_READ | PROT_GROWSDOWN}},
	{"pkey_mprotect", SYS_pkey_mprotect, {STR(page), 4096, PROT_EXEC, 0}},
	{"mremap", SYS_mremap, {STR(page), 4096, 8192, 0}},
	{"remap_file_pages", SYS_remap_file_pages, {STR(page), 4096, 0, 0, 0}},
	{"mlock", SYS_mlock, {STR(page), 4096}},
	{"madvise-mergeable", SYS_madvise, {STR(page), 4096, MADV_MERGEABLE}},
	{"madvise-dofork", SYS_madvise, {STR(page), 4096, MADV_DOFORK}},
	{"madvise-dodump", SYS_madvise, {STR(page), 4096, MADV_DODUMP}},
	{"madvise-keeponfork", SYS_madvise, {STR(page), 4096, MADV_KEEPONFORK}},
	{"madvise-remove", SYS_madvise, {STR(page), 4096, MADV_REMOVE}},
	{"membarrier", SYS_membarrier, {0, 0, 0}},
	/* futex */
	{"futex-requeue", SYS_futex, {STR(page), FUTEX_CMP_REQUEUE_PRIVATE, 0, 0, STR(page), 0}},
	{"futex-lock-pi", SYS_futex, {STR(page), FUTEX_LOCK_PI_PRIVATE, 0, 0, 0, 0}},
	{"futex-requeue-pi",
	 SYS_futex,
	 {STR(page), FUTEX_CMP_REQUEUE_PI_PRIVATE, 0, 0, STR(page), 0}},
	{"futex-wake-op", SYS_futex, {STR(page), FUTEX_WAKE_OP_PRIVATE, 0, 0, STR(page), 0}},
	/* ioctl: KVM's that are not used, and others */
	{"ioctl-create-device", SYS_ioctl, {0, KVM_CREATE_DEVICE, STR(page)}},
	{"ioctl-create-irqchip", SYS_ioctl, {0, KVM_CREATE_IRQCHIP, 0}},
	{"ioctl-create-pit2", SYS_ioctl, {0, KVM_CREATE_PIT2, STR(page)}},
	{"ioctl-irqfd", SYS_ioctl, {0, KVM_IRQFD, STR(page)}},
	{"ioctl-ioeventfd", SYS_ioctl, {0, KVM_IOEVENTFD, STR(page)}},
	{"ioctl-irq-line", SYS_ioctl, {0, KVM_IRQ_LINE, STR(page)}},
	{"ioctl-gsi-routing", SYS_ioctl, {0, KVM_SET_GSI_ROUTING, STR(page)}},
	{"ioctl-guest-debug", SYS_ioctl, {0, KVM_SET_GUEST_DEBUG, STR(page)}},
	{"ioctl-interrupt", SYS_ioctl, {0, KVM_INTERRUPT, STR(page)}},
	{"ioctl-set-sregs2", SYS_ioctl, {0, KVM_SET_SREGS2, STR(page)}},
	{"ioctl-nested-state", SYS_ioctl, {0, KVM_SET_NESTED_STATE, STR(page)}},
	{"ioctl-pmu-filter", SYS_ioctl, {0, KVM_SET_PMU_EVENT_FILTER, STR(page)}},
	{"ioctl-smi", SYS_ioctl, {0, KVM_SMI, 0}},
	{"ioctl-memory-encrypt", SYS_ioctl, {0, KVM_MEMORY_ENCRYPT_OP, STR(page)}},
	{"ioctl-xen", SYS_ioctl, {0, KVM_XEN_HVM_CONFIG, STR(page)}},
	{"ioctl-high-bits", SYS_ioctl, {0, KVM_RUN | 1ul << 32, 0}},
	{"ioctl-tiocsti", SYS_ioctl, {0, TIOCSTI, STR(page)}},
	{"ioctl-tioclinux", SYS_ioctl, {0, TIOCLINUX, STR(page)}},
	{"ioctl-fionread", SYS_ioctl, {0, FIONREAD, STR(page)}},
	{"ioctl-fionbio", SYS_ioctl, {0, FIONBIO, STR(page)}},
	{"ioctl-fioasync", SYS_ioctl, {0, FIOASYNC, STR(page)}},
	{"ioctl-blkgetsize", SYS_ioctl, {0, BLKGETSIZE64, STR(page)}},
	{"ioctl-ficlone", SYS_ioctl, {0, FICLONE, 0}},
	{"ioctl-setflags", SYS_ioctl, {0, FS_IOC_SETFLAGS, STR(page)}},
	/* epoll and eventfd with other flags */
	{"eventfd-semaphore", SYS_eventfd2, {0, EFD_SEMAPHORE | EFD_CLOEXEC | EFD_NONBLOCK}},
	{"epoll-open", SYS_epoll_create1, {0}},
	{"close_range-unshare", SYS_close_range, {100, ~0u, 2}},
};

/*
 * What the process may do and a vCPU's thread may not. Of these that are tried in the process, the
 * result is what the test expects (in test_jail.py).
 */
static const struct probe vcpu_only[] = {
	{"ioctl-create-vm", SYS_ioctl, {0, KVM_CREATE_VM, 0}},
	{"ioctl-create-vcpu", SYS_ioctl, {0, KVM_CREATE_VCPU, 0}},
	{"ioctl-memory-region", SYS_ioctl, {0, KVM_SET_USER_MEMORY_REGION, STR(page)}},
	{"ioctl-set-msrs", SYS_ioctl, {0, KVM_SET_MSRS, STR(page)}},
	{"ioctl-set-cpuid2", SYS_ioctl, {0, KVM_SET_CPUID2, STR(page)}},
	{"ioctl-msr-filter", SYS_ioctl, {0, KVM_X86_SET_MSR_FILTER, STR(page)}},
	{"ioctl-enable-cap", SYS_ioctl, {0, KVM_ENABLE_CAP, STR(page)}},
	{"clone-sibling", SYS_clone, {CLONE_PARENT | SIGCHLD}},
	{"clone-thread",
	 SYS_clone,
	 {THREAD_FLAGS, STR(page + 2048), STR(page), STR(page), STR(page)}},
	{"clone3", SYS_clone3, {STR(page), 88}},
	{"seccomp", SYS_seccomp, {SECCOMP_SET_MODE_FILTER, 0, STR(page)}},
	{"prctl-name", SYS_prctl, {PR_SET_NAME, STR("x")}},
	{"prctl-death", SYS_prctl, {PR_SET_PDEATHSIG, SIGKILL}},
	{"recvmsg", SYS_recvmsg, {0, STR(page), MSG_CMSG_CLOEXEC | MSG_DONTWAIT}},
	{"send-waiting", SYS_sendto, {0, STR(page), 1, MSG_NOSIGNAL}},
	{"eventfd", SYS_eventfd2, {0, EFD_CLOEXEC | EFD_NONBLOCK}},
	{"epoll_create", SYS_epoll_create1, {EPOLL_CLOEXEC}},
	{"epoll_wait", SYS_epoll_wait, {0, STR(page), 1, 0}},
	{"read", SYS_read, {0, STR(page), 1}},
	{"pread", SYS_pread64, {0, STR(page), 1, 0}},
	{"fcntl-getfl", SYS_fcntl, {0, F_GETFL}},
	{"fcntl-get-seals", SYS_fcntl, {0, F_GET_SEALS}},
	{"fstat", SYS_fstat, {0, STR(page)}},
	{"close_range", SYS_close_range, {100, 200, 0}},
	{"mmap",
	 SYS_mmap,
	 {0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (unsigned long)-1, 0}},
	{"mprotect", SYS_mprotect, {STR(page), 4096, PROT_READ | PROT_WRITE}},
	{"munmap", SYS_munmap, {0x10000, 4096}},
	{"brk", SYS_brk, {0}},
	{"madvise-dontfork", SYS_madvise, {STR(page), 4096, MADV_DONTFORK}},
	{"madvise-guard", SYS_madvise, {STR(page), 4096, 102}},
	{"sigaction", SYS_rt_sigaction, {SIGUSR1, 0, 0, 8}},
	{"gettid", SYS_gettid, {0}},
	{"getpid", SYS_getpid, {0}},
	{"tgkill", SYS_tgkill, {1, 1, SIGUSR1}},
	{"rseq", SYS_rseq, {0, 32, 0, 0}},
	{"set_robust_list", SYS_set_robust_list, {STR(page), 24}},
	{"exit_group", SYS_exit_group, {0}},
};

/* What both may: so that a probe that is killed was killed for what it did. */
static const struct probe allowed[] = {
	{"ioctl-run", SYS_ioctl, {0, KVM_RUN, 0}},
	{"ioctl-signal-msi", SYS_ioctl, {0, KVM_SIGNAL_MSI, STR(page)}},
	{"send", SYS_sendto, {0, STR(page), 1, MSG_NOSIGNAL | MSG_DONTWAIT}},
	{"recv", SYS_recvfrom, {0, STR(page), 1, MSG_DONTWAIT}},
	{"write", SYS_write, {1, STR(page), 0}},
	{"preadv", SYS_preadv, {0, 0, 0, 0, 0}},
	{"fdatasync", SYS_fdatasync, {0}},
	{"fallocate-punch", SYS_fallocate, {0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1}},
	{"madvise-dontneed", SYS_madvise, {STR(page), 4096, MADV_DONTNEED}},
	{"futex-wake", SYS_futex, {STR(page), FUTEX_WAKE_PRIVATE, 1}},
};

const struct probe_table probe_tables[PROBE_TABLES] = {
	{"any", anywhere, ARRAY_SIZE(anywhere)},
	{"vcpu", vcpu_only, ARRAY_SIZE(vcpu_only)},
	{"any", allowed, ARRAY_SIZE(allowed)},
};
