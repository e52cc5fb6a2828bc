/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calls that the linker puts in place of those of the VMM.
 */
#define _GNU_SOURCE
#include "fake_kvm.h"
#include "input.h"

#include "lib/list.h"
#include "proto/guest.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RUN_SIZE 12288 /* as on x86: kvm_run, a page for port access, one for coalesced MMIO */

struct fake_kvm fake_kvm;

/* What a child would not have inherited. */
static struct {
	void *at;
	size_t len;
} not_inherited[2 * MACHINE_MAX_VCPUS];
static unsigned n_not_inherited;

int __real_ioctl(int fd, unsigned long req, ...);
int __wrap_ioctl(int fd, unsigned long req, ...);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __real_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *ts);
int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *ts);
int __real_pthread_barrier_wait(pthread_barrier_t *b);
int __wrap_pthread_barrier_wait(pthread_barrier_t *b);
int __real_close_range(unsigned int first, unsigned int last, int flags);
int __wrap_close_range(unsigned int first, unsigned int last, int flags);
int __real_prctl(int op, ...);
int __wrap_prctl(int op, ...);
int __real_madvise(void *at, size_t len, int advice);
int __wrap_madvise(void *at, size_t len, int advice);
long __real_syscall(long n, ...);
long __wrap_syscall(long n, ...);

static int file_of(size_t len)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	MUST(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
	return fd;
}

/* Calls whose answer is more than "done". */
static int answer(unsigned long req, void *arg)
{
	static const uint32_t msrs[] = {0x10, 0x11, 0x174, 0x480, 0x6e0, 0x40000001, 0xc0000080};
	struct kvm_dirty_log *log = arg;

	switch (req) {
	case KVM_GET_API_VERSION:
		return KVM_API_VERSION;
	case KVM_CHECK_EXTENSION:
		return 8;
	case KVM_GET_VCPU_MMAP_SIZE:
		return RUN_SIZE;
	case KVM_CREATE_VM:
		return file_of(0);
	case KVM_CREATE_VCPU:
		return file_of(RUN_SIZE);
	case KVM_GET_SUPPORTED_CPUID:
		((struct kvm_cpuid2 *)arg)->nent = 4;
		for (uint32_t i = 0; i < 4; i++)
			((struct kvm_cpuid2 *)arg)->entries[i].function = i == 3 ? 0xb : i;
		return 0;
	case KVM_GET_MSR_INDEX_LIST:
		((struct kvm_msr_list *)arg)->nmsrs = sizeof(msrs) / sizeof(msrs[0]);
		memcpy(((struct kvm_msr_list *)arg)->indices, msrs, sizeof(msrs));
		return 0;
	case KVM_GET_MSRS:
	case KVM_SET_MSRS:
		return (int)((struct kvm_msrs *)arg)->nmsrs;
	case KVM_GET_DIRTY_LOG:
		memset(log->dirty_bitmap, fake_kvm.dirty, 64);
		return 0;
	case VM_PRE_FAULT_MEMORY:
		((struct vm_pre_fault *)arg)->size = 0;
		return 0;
	case KVM_SIGNAL_MSI:
		fake_kvm.msis++;
		return 1;
	default:
		return 0;
	}
}

int __wrap_ioctl(int fd, unsigned long req, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, req);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (!fake_kvm.on || (req >> 8 & 0xff) != KVMIO)
		return __real_ioctl(fd, req, arg);
	if (fake_kvm.fail && --fake_kvm.fail == 0) {
		errno = EINVAL;
		return -1;
	}
	return answer(req, arg);
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
	return fake_kvm.on ? 0 : __real_pthread_create(t, a, fn, arg);
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *ts)
{
	if (!fake_kvm.on)
		return __real_pthread_cond_timedwait(c, m, ts);
	list_entry(c, struct vcpu_park, parked_cond)->parked++;
	return 0;
}

/* The threads of a leaf's vCPUs, which were not started, would come here. */
int __wrap_pthread_barrier_wait(pthread_barrier_t *b)
{
	return fake_kvm.on ? 0 : __real_pthread_barrier_wait(b);
}

int __wrap_close_range(unsigned int first, unsigned int last, int flags)
{
	unsigned int from = (unsigned int)fake_kvm.first_fd;

	if (!fake_kvm.on)
		return __real_close_range(first, last, flags);
	first = first > from ? first : from;
	last = last < FAKE_KVM_OWN_FDS ? last : FAKE_KVM_OWN_FDS - 1;
	return first > last ? 0 : __real_close_range(first, last, flags);
}

/* That this process ends with its parent, and the names of its threads, are the fuzzer's matter. */
int __wrap_prctl(int op, ...)
{
	(void)op;
	return 0;
}

/* Of the 2 MiB of a huge page a run uses a few bytes. */
int __wrap_madvise(void *at, size_t len, int advice)
{
	if (fake_kvm.on && advice == MADV_DONTFORK) {
		MUST(n_not_inherited < sizeof(not_inherited) / sizeof(not_inherited[0]));
		not_inherited[n_not_inherited].at = at;
		not_inherited[n_not_inherited++].len = len;
	}
	return fake_kvm.on && advice == MADV_HUGEPAGE ? 0 : __real_madvise(at, len, advice);
}

/* In the process that goes on as the child. */
static void drop_not_inherited(void)
{
	while (n_not_inherited) {
		n_not_inherited--;
		munmap(not_inherited[n_not_inherited].at, not_inherited[n_not_inherited].len);
	}
}

/* As libc's, it takes six arguments however many there are. */
__attribute__((no_sanitize("address"))) long __wrap_syscall(long n, ...)
{
	long a[6];
	va_list ap;

	va_start(ap, n);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	/* The end of parking. */
	if (fake_kvm.on && n == SYS_futex && a[1] == FUTEX_WAKE_PRIVATE)
		list_entry(a[0], struct vcpu_park, wanted)->parked = 0;
	if (!fake_kvm.on || n != SYS_clone)
		return __real_syscall(n, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (!fake_kvm.be_child)
		return 100000 + (long)++fake_kvm.forks;
	drop_not_inherited();
	return 0;
}

void fake_kvm_begin(void)
{
	int last = FAKE_KVM_OWN_FDS / 2, fd;

	while (fcntl(last, F_GETFD) < 0)
		last--;
	/* Holes are plugged: what is opened from here on lies behind all that there was. */
	do {
		fd = dup(STDERR_FILENO);
		MUST(fd >= 0);
	} while (fd < last);
	close(fd);
	fake_kvm = (struct fake_kvm){.on = true, .first_fd = fd};
	n_not_inherited = 0;
}

void fake_kvm_end(void)
{
	__real_close_range((unsigned int)fake_kvm.first_fd, FAKE_KVM_OWN_FDS + 200, 0);
	fake_kvm.on = false;
}

int fake_kvm_sealed(size_t len)
{
	int fd = file_of(len);

	MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE) == 0);
	return fd;
}

int fake_kvm_file(const void *data, size_t len)
{
	int fd = file_of(0);

	MUST(pwrite(fd, data, len, 0) == (ssize_t)len);
	return fd;
}

void fake_kvm_layer(int *rw, int *ro)
{
	char path[64];

	*rw = file_of(0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", *rw);
	*ro = open(path, O_RDONLY | O_CLOEXEC);
	MUST(*ro >= 0);
}

size_t fake_kvm_elf(uint8_t out[256])
{
	Elf64_Ehdr eh = {.e_type = ET_EXEC,
			 .e_machine = EM_X86_64,
			 .e_entry = 0x1000000,
			 .e_phoff = sizeof(eh),
			 .e_phentsize = sizeof(Elf64_Phdr),
			 .e_phnum = 1};
	Elf64_Phdr ph = {.p_type = PT_LOAD, .p_paddr = 0x1000000, .p_filesz = 64, .p_memsz = 4096};

	memset(out, 0x90, 256);
	memcpy(eh.e_ident, ELFMAG "\2\1\1", 7);
	memcpy(out, &eh, sizeof(eh));
	memcpy(out + sizeof(eh), &ph, sizeof(ph));
	return 256;
}

int fake_kvm_own(int fd)
{
	int own = fcntl(fd, F_DUPFD_CLOEXEC, FAKE_KVM_OWN_FDS);

	MUST(own >= 0);
	close(fd);
	return own;
}

struct machine_config fake_kvm_config(void)
{
	struct machine_config c = {.mem_mib = MACHINE_MIN_MIB,
				   .vcpus = 2,
				   .disk_mib = MACHINE_DISK_MIN_MIB,
				   .cmdline = "fuzz"};
	uint8_t elf[256];

	c.fds[CTL_BOOT_KVM] = fake_kvm_file("", 0);
	c.fds[CTL_BOOT_KERNEL] = fake_kvm_file(elf, fake_kvm_elf(elf));
	c.fds[CTL_BOOT_INITRD] = fake_kvm_file("cpio", 4);
	c.fds[CTL_BOOT_ROOT] = fake_kvm_sealed(4096);
	c.fds[CTL_BOOT_CONSOLE] = file_of(CONSOLE_RING_SIZE);
	fake_kvm_layer(&c.fds[CTL_BOOT_DISK_RW], &c.fds[CTL_BOOT_DISK_RO]);
	return c;
}

void fake_kvm_drop(struct machine *m)
{
	for (unsigned i = 0; i < m->nvcpus; i++)
		if (m->vcpus[i].run)
			munmap(m->vcpus[i].run, m->vcpus[i].run_size);
	free(m->vcpus);
	free(m->saved);
	hotsets_end(&m->hot);
	for (unsigned i = 0; i < CTL_HOTSETS; i++)
		free(m->hot.set[i].run);
	if (m->devices[MACHINE_DEV_VSOCK])
		vsock_free(&m->vsock);
	layers_free(&m->disk.layers);
	console_free(&m->console);
	rom_free(&m->root);
	gmem_free(&m->ram);
}
