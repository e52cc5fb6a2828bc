/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which model-specific registers a guest may touch. With a KVM that is played,
 * which decides as the real one does (arch/x86/kvm/x86.c, kvm_msr_allowed()), and
 * with the host's own.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "vmm/core/vm.h"
#include "vmm/x86/msr_filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define READ  KVM_MSR_FILTER_READ
#define WRITE KVM_MSR_FILTER_WRITE

/* The KVM that is played. */
static struct {
	bool on;
	int fails;      /* errno of setting a filter */
	int vms, calls; /* VMs made; calls to the last one, so far */
	int filters;    /* that were set, each as the first thing of its VM */
	struct kvm_msr_filter filter;
	uint8_t bits[KVM_MSR_FILTER_MAX_RANGES][KVM_MSR_FILTER_MAX_BITMAP_SIZE];
} kvm;

static int take(const struct kvm_msr_filter *f)
{
	assert_int_equal(f->flags, KVM_MSR_FILTER_DEFAULT_DENY);
	kvm.filters += kvm.calls == 1;
	kvm.filter = *f;
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
		const struct kvm_msr_filter_range *r = &f->ranges[i];

		if (!r->nmsrs)
			continue;
		assert_true(r->flags && !(r->flags & ~(uint32_t)(READ | WRITE)));
		assert_int_equal(r->nmsrs % 64, 0); /* KVM takes whole words */
		assert_true(r->nmsrs / 8 <= sizeof(kvm.bits[i]));
		memcpy(kvm.bits[i], r->bitmap, r->nmsrs / 8);
	}
	errno = kvm.fails;
	return kvm.fails ? -1 : 0;
}

/* In place of libc's, which the VMM's code would call. */
int ioctl(int fd, unsigned long req, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, req);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (!kvm.on)
		return (int)syscall(SYS_ioctl, fd, req, arg);
	kvm.calls++;
	switch (req) {
	case KVM_GET_API_VERSION:
		return KVM_API_VERSION;
	case KVM_GET_VCPU_MMAP_SIZE:
		return 12288;
	case KVM_CHECK_EXTENSION:
		return 8;
	case KVM_CREATE_VM:
		kvm.vms++;
		kvm.calls = 0;
		return memfd_create("vm", MFD_CLOEXEC);
	case KVM_X86_SET_MSR_FILTER:
		return take(arg);
	default:
		return 0;
	}
}

static int play(void **state)
{
	(void)state;
	memset(&kvm, 0, sizeof(kvm));
	kvm.on = true;
	return 0;
}

static int play_no_more(void **state)
{
	(void)state;
	kvm.on = false;
	return 0;
}

/* As KVM decides, but for the x2APIC. */
static bool may(uint32_t index, uint32_t how)
{
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
		const struct kvm_msr_filter_range *r = &kvm.filter.ranges[i];
		uint32_t n = index - r->base;

		if (index >= r->base && n < r->nmsrs && (r->flags & how))
			return kvm.bits[i][n / 8] >> n % 8 & 1;
	}
	return false;
}

/* A VM, as it is made at boot and, from the same struct, in each copy. */
static int create(struct err *err)
{
	struct kvm_vm vm;
	struct gmem ram;
	int rc;

	assert_int_equal(kvm_vm_init(&vm, memfd_create("kvm", MFD_CLOEXEC), err), 0);
	assert_int_equal(gmem_init(&ram, 16u << 20, err), 0);
	rc = kvm_vm_create(&vm, &ram, NULL, false, err);
	if (rc == 0) {
		close_fd(&vm.fd);
		rc = kvm_vm_create(&vm, &ram, NULL, true, err);
	}
	kvm_vm_free(&vm);
	gmem_free(&ram);
	return rc;
}

static void test_each_vm_has_it_first(void **state)
{
	struct err err = {0};

	(void)state;
	assert_int_equal(create(&err), 0);
	assert_int_equal(kvm.vms, 2);
	assert_int_equal(kvm.filters, 2);
}

static void test_without_it_there_is_no_vm(void **state)
{
	struct err err = {0};

	(void)state;
	kvm.fails = ENOMEM;
	assert_int_equal(create(&err), -ENOMEM);
	assert_non_null(strstr(err.msg, "registers"));
	assert_int_equal(kvm.calls, 1);
}

static void test_what_is_refused(void **state)
{
	static const uint32_t refused[][2] = {
		{0x0, 0xf},               /* of the first processors */
		{0x11, 0x12},             /* kvm-clock under its first numbers */
		{0x17, 0x17},             /* PLATFORM_ID */
		{0x34, 0x34},             /* how many interrupts of system management */
		{0x3a, 0x3a},             /* FEAT_CTL: VMX, enclaves */
		{0x4e, 0x4f},             /* a number of the processor's own */
		{0x79, 0x79},             /* microcode */
		{0x8c, 0x8f},             /* enclaves */
		{0x9b, 0x9e},             /* system management */
		{0xc1, 0xc8},             /* counters */
		{0xe1, 0xe1},             /* UMWAIT */
		{0xe7, 0xe8},             /* MPERF, APERF */
		{0x186, 0x18d},           /* counters */
		{0x198, 0x19f},           /* frequency, heat */
		{0x1a2, 0x1c9},           /* heat, power, records of branches */
		{0x1db, 0x1de},           /* last branch, last interrupt */
		{0x309, 0x3ff},           /* counters */
		{0x480, 0x4ff},           /* VMX */
		{0x560, 0x5ff},           /* traces */
		{0x600, 0x6df},           /* buffers of counters; power; records of branches */
		{0x6e1, 0x7ff},           /* power */
		{0x900, 0xd9f},           /* resources, enclaves */
		{0x1000, 0x1fff},         /* traces of accesses, records of branches */
		{0x40000000, 0x400001ff}, /* Hyper-V's */
		{0x4b564d02, 0x4b564d02}, /* asynchronous page faults */
		{0x4b564d05, 0x4b564dff}, /* polling, moves, whatever comes */
		{0xc0000000, 0xc000007f},
		{0xc00000e7, 0xc00000e9}, /* frequency */
		{0xc0000104, 0xc0000104}, /* rate of the TSC: SVM */
		{0xc0000300, 0xc0001fff}, /* counters */
		{0xc0010000, 0xc001000f}, /* counters of the K7 */
		{0xc0010020, 0xc0010054}, /* microcode, power */
		{0xc0010058, 0xc001010f}, /* PCI, power, SVM, system management */
		{0xc0010111, 0xc001011e}, /* SVM */
		{0xc0010130, 0xc0010131}, /* encrypted guests */
		{0xc0010200, 0xc001020f}, /* counters */
		{0xc0010230, 0xc0011028}, /* counters, power */
		{0xc0011030, 0xc001103b}, /* IBS */
		{0xfffffff0, 0xffffffff},
	};
	struct err err = {0};

	(void)state;
	assert_int_equal(create(&err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
		for (uint32_t n = refused[i][0]; n - refused[i][0] <= refused[i][1] - refused[i][0];
		     n++) {
			if (may(n, READ) || may(n, WRITE))
				fail_msg("%#x", n);
			if (n == UINT32_MAX)
				break;
		}
}

/* What Linux uses without asking whether it is there, or when CPUID says that it is. */
static void test_what_a_kernel_needs(void **state)
{
	static const uint32_t both[] = {
		0x10,       0x1b,       0x3b,       0x48,       0x8b,       0x122,
		0x140,      0x174,      0x176,      0x179,      0x17a,      0x1a0,
		0x1d9,      0x200,      0x20f,      0x250,      0x259,      0x268,
		0x26f,      0x277,      0x2ff,      0x400,      0x47f,      0x6e0,
		0xda0,      0x4b564d00, 0x4b564d01, 0x4b564d03, 0x4b564d04, 0xc0000080,
		0xc0000084, 0xc0000100, 0xc0000103, 0xc0010015, 0xc001001f, 0xc0011029,
	};
	static const uint32_t read_only[] = {0xce, 0xfe, 0x10a, 0xc0010010, 0xc0010055, 0xc0010140};
	struct err err = {0};

	(void)state;
	assert_int_equal(create(&err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(both); i++)
		assert_true(may(both[i], READ) && may(both[i], WRITE));
	for (size_t i = 0; i < ARRAY_SIZE(read_only); i++)
		assert_true(may(read_only[i], READ) && !may(read_only[i], WRITE));
	assert_true(!may(0x10b, READ) && may(0x10b, WRITE));
}

/* Whoever adds one says so here, too: of all that the filter's ranges reach. */
static void test_how_many(void **state)
{
	unsigned int reads = 0, writes = 0;
	struct err err = {0};

	(void)state;
	assert_int_equal(create(&err), 0);
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
		for (uint32_t n = 0; n < kvm.filter.ranges[i].nmsrs; n++) {
			reads += (kvm.filter.ranges[i].flags & READ) &&
				 kvm.bits[i][n / 8] >> n % 8 & 1;
			writes += (kvm.filter.ranges[i].flags & WRITE) &&
				  kvm.bits[i][n / 8] >> n % 8 & 1;
		}
	assert_int_equal(reads, 215);
	assert_int_equal(writes, 209);
}

/* The host's own takes it, and goes on telling the VMM what it refuses a guest. */
static void test_of_this_host(void **state)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} w = {.h.nmsrs = 1, .e = {.index = 0x10}};
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu;
	struct err err = {0};

	(void)state;
	if (fd < 0)
		skip();
	vm = ioctl(fd, KVM_CREATE_VM, 0);
	assert_true(vm >= 0);
	assert_int_equal(msr_filter_set(vm, &err), 0);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	assert_true(vcpu >= 0);
	assert_int_equal(ioctl(vcpu, KVM_GET_MSRS, &w), 1);
	w.e.index = 0x12;
	assert_int_equal(ioctl(vcpu, KVM_GET_MSRS, &w), 1);
	close(vcpu);
	close(vm);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_each_vm_has_it_first, play, play_no_more),
		cmocka_unit_test_setup_teardown(test_without_it_there_is_no_vm, play, play_no_more),
		cmocka_unit_test_setup_teardown(test_what_is_refused, play, play_no_more),
		cmocka_unit_test_setup_teardown(test_what_a_kernel_needs, play, play_no_more),
		cmocka_unit_test_setup_teardown(test_how_many, play, play_no_more),
		cmocka_unit_test(test_of_this_host),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
