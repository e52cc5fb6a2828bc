/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest is shown of the processor: no virtualization of its own, no
 * counters, traces or records of what the processor did. With a KVM that is
 * played, which offers everything, and with the host's own.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "vmm/core/vm.h"
#include "vmm/x86/cpuid.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ANY (~0u)

/*
 * All that a guest may see, as numbers, where cpuid.c has bits and their reasons: who shows another
 * bit says so twice. What is not here is not there. eax, ebx, ecx, edx.
 */
static const struct {
	uint32_t function, first, last, mask[4];
} shown[] = {
	{0x0, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x1, 0, ANY, {ANY, ANY, 0xfffa3203, 0x1f8bfbff}},
	{0x2, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x4, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x6, 0, ANY, {0x4, 0, 0, 0}},
	{0x7, 0, 0, {ANY, 0xfdbf27eb, 0x1b415f5e, 0xbc80451c}},
	{0x7, 1, 1, {0x4801cb7, 0, 0, 0x84430}},
	{0x7, 2, 2, {0, 0, 0, 0x3f}},
	{0xb, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0xd, 0, 0, {0x2e7, ANY, ANY, 0}},
	{0xd, 1, 1, {0xf, ANY, 0, 0}},
	{0xd, 2, 2, {ANY, ANY, ANY, ANY}},
	{0xd, 5, 5, {ANY, ANY, ANY, ANY}},
	{0xd, 6, 6, {ANY, ANY, ANY, ANY}},
	{0xd, 7, 7, {ANY, ANY, ANY, ANY}},
	{0xd, 9, 9, {ANY, ANY, ANY, ANY}},
	{0x15, 0, ANY, {ANY, ANY, ANY, 0}},
	{0x1f, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x24, 0, 0, {ANY, ANY, 0, 0}},
	{0x40000000, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x40000001, 0, ANY, {0x0100026a, 0, 0, 0}},
	{0x80000000, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x80000001, 0, ANY, {ANY, ANY, 0x610bf3, 0xefd3fbff}},
	{0x80000002, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x80000003, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x80000004, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x80000005, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x80000006, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x80000007, 0, ANY, {0, 0, 0, 0x100}},
	{0x80000008, 0, ANY, {ANY, 0x770fd205, ANY, 0}},
	{0x80000019, 0, ANY, {ANY, ANY, 0, 0}},
	{0x8000001a, 0, ANY, {0x7, 0, 0, 0}},
	{0x8000001d, 0, ANY, {ANY, ANY, ANY, ANY}},
	{0x8000001e, 0, ANY, {ANY, ANY, ANY, 0}},
	{0x80000021, 0, ANY, {0x78120f67, 0, 0x6, 0}},
};

/* Its masks; NULL: nobody may see it. */
static const uint32_t *masks(uint32_t function, uint32_t index)
{
	for (size_t i = 0; i < ARRAY_SIZE(shown); i++)
		if (shown[i].function == function && shown[i].first <= index &&
		    index <= shown[i].last)
			return shown[i].mask;
	return NULL;
}

/* The KVM that is played. */
static struct {
	bool on;
	int pmu;         /* what it says of KVM_CAP_PMU_CAPABILITY */
	int pmu_fails;   /* errno of taking the counters away */
	int vm, vcpu;    /* how many of each were made */
	int asked;       /* how often the counters were taken away, */
	int asked_early; /* of these, before there was a vCPU */
	int enforced;    /* how often KVM was told to refuse what is not shown */
	int enforce_fails;
	int shown;     /* how often a vCPU got its CPUID */
	uint32_t leaf; /* the one it knows, with so many indices, */
	uint32_t indices;
	uint32_t bits; /* each register having these bits */
} kvm;

static int enable(const struct kvm_enable_cap *cap)
{
	if (cap->cap == KVM_CAP_ENFORCE_PV_FEATURE_CPUID) {
		assert_int_equal(cap->args[0], 1);
		kvm.enforced++;
		errno = kvm.enforce_fails;
		return kvm.enforce_fails ? -1 : 0;
	}
	if (cap->cap != KVM_CAP_PMU_CAPABILITY)
		return 0;
	assert_int_equal(cap->args[0], KVM_PMU_CAP_DISABLE);
	kvm.asked++;
	kvm.asked_early += kvm.vcpu == 0;
	errno = kvm.pmu_fails;
	return kvm.pmu_fails ? -1 : 0;
}

static int supported(struct kvm_cpuid2 *c)
{
	assert_true(c->nent >= kvm.indices);
	c->nent = kvm.indices;
	for (uint32_t i = 0; i < c->nent; i++)
		c->entries[i] = (struct kvm_cpuid_entry2){.function = kvm.leaf,
							  .index = i,
							  .eax = kvm.bits,
							  .ebx = kvm.bits,
							  .ecx = kvm.bits,
							  .edx = kvm.bits};
	return 0;
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
	switch (req) {
	case KVM_GET_API_VERSION:
		return KVM_API_VERSION;
	case KVM_GET_VCPU_MMAP_SIZE:
		return 12288;
	case KVM_CHECK_EXTENSION:
		return (uintptr_t)arg == KVM_CAP_PMU_CAPABILITY ? kvm.pmu : 8;
	case KVM_CREATE_VM:
		kvm.vm++;
		return memfd_create("vm", MFD_CLOEXEC);
	case KVM_CREATE_VCPU:
		kvm.vcpu++;
		return memfd_create("vcpu", MFD_CLOEXEC);
	case KVM_ENABLE_CAP:
		return enable(arg);
	case KVM_GET_SUPPORTED_CPUID:
		return supported(arg);
	case KVM_SET_CPUID2:
		kvm.shown++;
		return 0;
	default:
		return 0;
	}
}

static int play(void **state)
{
	(void)state;
	memset(&kvm, 0, sizeof(kvm));
	kvm.on = true;
	kvm.pmu = KVM_PMU_CAP_DISABLE;
	return 0;
}

static int play_no_more(void **state)
{
	(void)state;
	kvm.on = false;
	return 0;
}

/* A VM, as it is made at boot and, from the same struct, in each copy. */
static int create(struct kvm_vm *vm, struct err *err)
{
	struct gmem ram;
	int rc;

	assert_int_equal(kvm_vm_init(vm, memfd_create("kvm", MFD_CLOEXEC), err), 0);
	assert_int_equal(gmem_init(&ram, 16u << 20, err), 0);
	rc = kvm_vm_create(vm, &ram, NULL, false, err);
	if (rc == 0) {
		close_fd(&vm->fd);
		rc = kvm_vm_create(vm, &ram, NULL, false, err);
	}
	gmem_free(&ram);
	return rc;
}

static void test_counters_are_taken_away(void **state)
{
	struct err err = {0};
	struct kvm_vm vm;

	(void)state;
	assert_int_equal(create(&vm, &err), 0);
	assert_int_equal(kvm.vm, 2);
	assert_int_equal(kvm.asked, 2);
	assert_int_equal(kvm.asked_early, 2);
	kvm_vm_free(&vm);
}

/* An older kernel, or one that has none to give. */
static void test_a_kvm_that_cannot(void **state)
{
	static const int answers[] = {0, -1, 2};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
		struct err err = {0};
		struct kvm_vm vm;

		kvm.pmu = answers[i];
		errno = EINVAL;
		assert_int_equal(create(&vm, &err), 0);
		assert_int_equal(kvm.asked, 0);
		kvm_vm_free(&vm);
	}
}

static void test_a_kvm_that_does_not(void **state)
{
	struct err err = {0};
	struct kvm_vm vm;

	(void)state;
	kvm.pmu_fails = EINVAL;
	assert_int_equal(create(&vm, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "counters"));
	kvm_vm_free(&vm);
}

static void test_what_is_not_shown_is_refused(void **state)
{
	static struct cpuid_table t;
	struct err err = {0};

	(void)state;
	assert_int_equal(cpuid_init(&t, -1, &err), 0);
	for (unsigned int i = 0; i < 3; i++)
		assert_int_equal(cpuid_set(&t, -1, i, 3, &err), 0);
	assert_int_equal(kvm.enforced, 3);
	assert_int_equal(kvm.shown, 3);
	kvm.enforce_fails = EINVAL;
	assert_int_equal(cpuid_set(&t, -1, 0, 1, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "features"));
	assert_int_equal(kvm.shown, 3);
}

/* All leaves that there could be, with all bits. */
static void test_of_everything_that_there_is(void **state)
{
	static const uint32_t firsts[] = {0, 0x20000000, 0x40000000, 0x80000000, 0xc0000000};
	static struct cpuid_table t;
	struct err err = {0};
	unsigned int n = 0;

	(void)state;
	kvm.bits = ANY;
	kvm.indices = 64;
	for (uint32_t i = 0; i < ARRAY_SIZE(firsts) * 0x200; i++) {
		uint32_t k = 0;

		kvm.leaf = firsts[i / 0x200] + i % 0x200;
		assert_int_equal(cpuid_init(&t, -1, &err), 0);
		for (uint32_t index = 0; index < kvm.indices; index++) {
			const uint32_t *mask = masks(kvm.leaf, index);
			const struct kvm_cpuid_entry2 *e = &t.entries[k];

			if (!mask)
				continue;
			assert_true(k++ < t.count);
			assert_int_equal(e->function, kvm.leaf);
			assert_int_equal(e->index, index);
			assert_int_equal(e->eax, mask[0]);
			assert_int_equal(e->ebx, mask[1]);
			assert_int_equal(e->ecx, mask[2]);
			assert_int_equal(e->edx, mask[3]);
		}
		assert_int_equal(t.count, k);
		n += k > 0;
	}
	assert_int_equal(n, 27); /* leaves of the table above */
}

/* A kernel that does without CMPXCHG16B does not take it from guests; what the processor lacks,
 * nobody gives. */
static void test_of_nothing(void **state)
{
	static struct cpuid_table t;
	uint32_t eax, ebx, ecx, edx;
	struct err err = {0};

	(void)state;
	kvm.indices = 1;
	assert_int_not_equal(__get_cpuid(1, &eax, &ebx, &ecx, &edx), 0);
	for (uint32_t i = 0; i < ARRAY_SIZE(shown); i++) {
		const struct kvm_cpuid_entry2 *e = &t.entries[0];
		uint32_t want = shown[i].function == 1 ? 1u << 24 | 1u << 31 | (ecx & 1u << 13) : 0;

		kvm.leaf = shown[i].function;
		assert_int_equal(cpuid_init(&t, -1, &err), 0);
		assert_int_equal(t.count, 1);
		assert_int_equal(e->eax | e->ebx | e->edx, 0);
		assert_int_equal(e->ecx, want);
	}
}

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid_entry2 *e, uint32_t n,
					   uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < n; i++)
		if (e[i].function == function && e[i].index == index)
			return &e[i];
	return NULL;
}

/*
 * Of what the host's KVM offers: nothing but what is to be shown, and of that, in the leaves of
 * features, all. That is asked of the table, not of the vCPU that has it: a KVM whose guests run
 * without hardware virtualization shows them what it cannot hide.
 */
static void check_shown(int kvm_fd, const struct cpuid_table *t)
{
	static const uint32_t features[][2] = {{0x7, 0},        {0x7, 1},        {0x7, 2},
					       {0x40000001, 0}, {0x80000001, 0}, {0x80000007, 0},
					       {0x80000008, 0}, {0x80000021, 0}};
	static struct {
		struct kvm_cpuid2 h;
		struct kvm_cpuid_entry2 entries[CPUID_MAX_ENTRIES];
	} offered;
	unsigned int seen = 0;

	offered.h.nent = CPUID_MAX_ENTRIES;
	assert_int_equal(ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, &offered), 0);
	assert_true(t->count >= 10);
	for (uint32_t i = 0; i < t->count; i++) {
		const struct kvm_cpuid_entry2 *e = &t->entries[i];
		const uint32_t *mask = masks(e->function, e->index);

		assert_non_null(mask);
		assert_int_equal(e->eax & ~mask[0], 0);
		assert_int_equal(e->ebx & ~mask[1], 0);
		assert_int_equal(e->ecx & ~mask[2], 0);
		assert_int_equal(e->edx & ~mask[3], 0);
		/* That there is a hypervisor, and the deadline timer, is told. */
		if (e->function == 1)
			assert_int_equal(e->ecx >> 24 & 0x81, 0x81);
	}
	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		uint32_t function = features[i][0], index = features[i][1];
		const struct kvm_cpuid_entry2 *has = find(t->entries, t->count, function, index);
		const struct kvm_cpuid_entry2 *of =
			find(offered.entries, offered.h.nent, function, index);
		const uint32_t *mask = masks(function, index);

		if (!of)
			continue;
		seen++;
		assert_non_null(has);
		assert_int_equal(has->ebx, of->ebx & mask[1]);
		assert_int_equal(has->ecx, of->ecx & mask[2]);
		assert_int_equal(has->edx, of->edx & mask[3]);
	}
	assert_true(seen >= 3);
}

/* Whether KVM takes the value for an MSR of a vCPU: it says to the VMM what it says to the guest.
 */
static int takes(int vcpu, uint32_t index, uint64_t value)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} w = {.h.nmsrs = 1, .e = {.index = index, .data = value}};

	return ioctl(vcpu, KVM_SET_MSRS, &w);
}

/* linux/kvm_para.h */
static void check_refused(int vcpu)
{
	static const struct {
		uint32_t index;
		uint64_t value;
		int taken;
	} msrs[] = {
		{0x4b564d01, 0x1001, 1}, /* kvm-clock */
		{0x4b564d03, 0x2001, 1}, /* steal time */
		{0x4b564d04, 0x3001, 1}, /* ends of interrupts */
		{0x11, 0x1000, 0},       /* kvm-clock under its first numbers */
		{0x12, 0x1001, 0},       {0x4b564d02, 0x4009, 0}, /* asynchronous page faults */
		{0x4b564d05, 1, 0},                               /* polling */
		{0x4b564d06, 0xf0, 0},                            /* of asynchronous page faults */
	};

	for (size_t i = 0; i < ARRAY_SIZE(msrs); i++)
		assert_int_equal(takes(vcpu, msrs[i].index, msrs[i].value), msrs[i].taken);
}

static void test_of_this_host(void **state)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	static struct cpuid_table t;
	struct err err = {0};
	struct kvm_vm vm;
	struct gmem ram;
	int vcpu;

	(void)state;
	if (fd < 0)
		skip();
	assert_int_equal(kvm_vm_init(&vm, fd, &err), 0);
	assert_int_equal(gmem_init(&ram, 16u << 20, &err), 0);
	assert_int_equal(kvm_vm_create(&vm, &ram, NULL, false, &err), 0);
	assert_int_equal(cpuid_init(&t, fd, &err), 0);
	vcpu = ioctl(vm.fd, KVM_CREATE_VCPU, 0);
	assert_true(vcpu >= 0);
	assert_int_equal(cpuid_set(&t, vcpu, 0, 1, &err), 0);
	check_shown(fd, &t);
	check_refused(vcpu);
	close(vcpu);
	kvm_vm_free(&vm);
	gmem_free(&ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_counters_are_taken_away, play, play_no_more),
		cmocka_unit_test_setup_teardown(test_a_kvm_that_cannot, play, play_no_more),
		cmocka_unit_test_setup_teardown(test_a_kvm_that_does_not, play, play_no_more),
		cmocka_unit_test_setup_teardown(test_what_is_not_shown_is_refused, play,
						play_no_more),
		cmocka_unit_test_setup_teardown(test_of_everything_that_there_is, play,
						play_no_more),
		cmocka_unit_test_setup_teardown(test_of_nothing, play, play_no_more),
		cmocka_unit_test(test_of_this_host),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
