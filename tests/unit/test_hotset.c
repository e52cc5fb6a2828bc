/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hot sets: from the bitmaps of a rehearsal to runs of pages, what populating them makes of a
 * child's memory, and what KVM is asked to map.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "vmm/core/hotset.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096u
#define MIB  (1ull << 20)

struct rig {
	struct gmem ram;
	struct hotsets hot;
	struct err err;
};

static void rig_init(struct rig *r, uint64_t size)
{
	*r = (struct rig){0};
	assert_int_equal(gmem_init(&r->ram, size, &r->err), 0);
	assert_int_equal(hotsets_begin(&r->hot, &r->ram, &r->err), 0);
}

static void rig_free(struct rig *r)
{
	/* Frees what was learned. */
	assert_int_equal(hotsets_begin(&r->hot, &r->ram, &r->err), 0);
	hotsets_end(&r->hot);
	gmem_free(&r->ram);
}

static void mark(struct rig *r, enum ctl_hotset set, uint32_t page)
{
	r->hot.bits[(size_t)set * r->hot.words + page / 64] |= 1ull << page % 64;
}

static void expect_runs(const struct hotset *s, const struct hot_run *run, uint32_t n)
{
	uint32_t pages = 0;

	assert_int_equal(s->nruns, n);
	for (uint32_t i = 0; i < n; i++) {
		assert_int_equal(s->run[i].page, run[i].page);
		assert_int_equal(s->run[i].count, run[i].count);
		pages += run[i].count;
	}
	assert_int_equal(s->pages, pages);
}

static void test_runs(void **state)
{
	static const struct hot_run ready[] = {{0, 1}, {63, 2}, {200, 1}, {1023, 1}};
	static const struct hot_run call[] = {{65, 1}, {500, 3}};
	struct rig r;

	(void)state;
	rig_init(&r, 4 * MIB);
	for (uint32_t i = 0; i < 4; i++)
		for (uint32_t k = 0; k < ready[i].count; k++)
			mark(&r, CTL_HOTSET_READY, ready[i].page + k);
	/* What it wrote before it is called is its own by then. */
	mark(&r, CTL_HOTSET_CALL, 64);
	mark(&r, CTL_HOTSET_CALL, 65);
	mark(&r, CTL_HOTSET_CALL, 200);
	for (uint32_t k = 0; k < 3; k++)
		mark(&r, CTL_HOTSET_CALL, 500 + k);
	assert_int_equal(hotsets_learn(&r.hot, &r.err), 0);
	assert_null(r.hot.bits);
	expect_runs(&r.hot.set[CTL_HOTSET_READY], ready, 4);
	expect_runs(&r.hot.set[CTL_HOTSET_CALL], call, 2);
	rig_free(&r);
}

static void test_nothing_written(void **state)
{
	struct rig r;

	(void)state;
	rig_init(&r, 2 * MIB);
	assert_int_equal(hotsets_learn(&r.hot, &r.err), 0);
	expect_runs(&r.hot.set[CTL_HOTSET_READY], NULL, 0);
	hotsets_populate(&r.hot, &r.ram, CTL_HOTSET_READY);
	rig_free(&r);
}

/* A machine that writes to all of its memory must not make its copies do the same. */
static void test_bound(void **state)
{
	const struct hot_run all = {0, HOTSET_MAX_PAGES};
	struct rig r;

	(void)state;
	rig_init(&r, 256 * MIB);
	memset(r.hot.bits, 0xff, CTL_HOTSETS * r.hot.words * sizeof(r.hot.bits[0]));
	assert_int_equal(hotsets_learn(&r.hot, &r.err), 0);
	expect_runs(&r.hot.set[CTL_HOTSET_READY], &all, 1);
	expect_runs(&r.hot.set[CTL_HOTSET_CALL], NULL, 0);
	rig_free(&r);
}

/* A copy that still runs, or pretends to have ended, and has the bitmap, too. */
static struct {
	uint64_t *bits;
	size_t words;
} meddler;

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);

void *__wrap_calloc(size_t n, size_t size)
{
	for (size_t i = 0; i < meddler.words; i++)
		meddler.bits[i] = 0x5555555555555555ull;
	return __real_calloc(n, size);
}

/* The number of runs is counted, then there is memory for so many. */
static void test_a_bitmap_that_changes(void **state)
{
	const struct hot_run one = {7, 1};
	struct rig r;
	size_t size;

	(void)state;
	rig_init(&r, 4 * MIB);
	mark(&r, CTL_HOTSET_READY, 7);
	size = CTL_HOTSETS * r.hot.words * sizeof(r.hot.bits[0]);
	meddler.bits = mremap(r.hot.bits, 0, size, MREMAP_MAYMOVE);
	assert_ptr_not_equal(meddler.bits, MAP_FAILED);
	meddler.words = size / sizeof(meddler.bits[0]);
	assert_int_equal(hotsets_learn(&r.hot, &r.err), 0);
	meddler.words = 0;
	expect_runs(&r.hot.set[CTL_HOTSET_READY], &one, 1);
	expect_runs(&r.hot.set[CTL_HOTSET_CALL], NULL, 0);
	assert_int_equal(munmap(meddler.bits, size), 0);
	rig_free(&r);
}

static void test_without_a_rehearsal(void **state)
{
	struct kvm_vm vm = {.kvm_fd = -1, .fd = -1};
	struct rig r;

	(void)state;
	rig_init(&r, 2 * MIB);
	/* No machine behind it: KVM's answer is told. */
	assert_int_equal(hotsets_record(&r.hot, &r.ram, &vm, CTL_HOTSET_READY, &r.err), -EBADF);
	hotsets_end(&r.hot);
	hotsets_end(&r.hot);
	assert_int_equal(hotsets_record(&r.hot, &r.ram, &vm, CTL_HOTSET_READY, &r.err), -EINVAL);
	assert_int_equal(hotsets_learn(&r.hot, &r.err), -EINVAL);
	rig_free(&r);
}

/* Pages that are present and this process's alone, as /proc/self/pagemap tells. */
static unsigned int own_pages(const struct gmem *ram)
{
	_cleanup_fd int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	unsigned int n = 0;

	assert_true(fd >= 0);
	for (uint64_t i = 0; i < ram->size / PAGE; i++) {
		uint64_t entry, at = ((uintptr_t)ram->base / PAGE + i) * sizeof(entry);

		assert_int_equal(pread(fd, &entry, sizeof(entry), (off_t)at), sizeof(entry));
		n += (entry >> 63 & 1) && (entry >> 56 & 1);
	}
	return n;
}

/* In a child: exactly the pages of the set are copied, with what was in them. */
static void test_populate(void **state)
{
	struct rig r;
	int status;
	pid_t pid;

	(void)state;
	rig_init(&r, 4 * MIB);
	memset(r.ram.base, 7, r.ram.size);
	mark(&r, CTL_HOTSET_READY, 3);
	mark(&r, CTL_HOTSET_READY, 4);
	mark(&r, CTL_HOTSET_READY, 700);
	mark(&r, CTL_HOTSET_CALL, 900);
	assert_int_equal(hotsets_learn(&r.hot, &r.err), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		bool ok;

		/* The kernel's thread that makes huge pages of small ones copies when it likes. */
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
		ok = own_pages(&r.ram) == 0;
		hotsets_populate(&r.hot, &r.ram, CTL_HOTSET_READY);
		ok = ok && own_pages(&r.ram) == 3;
		hotsets_populate(&r.hot, &r.ram, CTL_HOTSET_CALL);
		ok = ok && own_pages(&r.ram) == 4;
		for (uint64_t i = 0; ok && i < r.ram.size; i += PAGE / 2)
			ok = r.ram.base[i] == 7;
		_exit(ok ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	rig_free(&r);
}

/* What the VMM asks KVM to map, in place of KVM. */
#define VCPU_FD 77
#define ASKED   16u

static struct {
	struct vm_pre_fault asked[ASKED];
	unsigned int n;
	uint64_t most; /* bytes that it maps of each before a signal comes */
	unsigned int fail_at, error, stop_at;
	_Atomic int stop;
} kvm;

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	struct vm_pre_fault *range;
	uint64_t done;
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (fd != VCPU_FD)
		return __real_ioctl(fd, request, arg);
	assert_int_equal(request, VM_PRE_FAULT_MEMORY);
	range = arg;
	assert_true(range->size > 0 && range->size % PAGE == 0 && range->gpa % PAGE == 0);
	assert_int_equal(range->flags, 0);
	for (unsigned int i = 0; i < ARRAY_SIZE(range->padding); i++)
		assert_int_equal(range->padding[i], 0);
	assert_true(kvm.n < ASKED);
	kvm.asked[kvm.n++] = *range;
	if (kvm.n == kvm.stop_at)
		kvm.stop = 1;
	if (kvm.n == kvm.fail_at) {
		errno = (int)kvm.error;
		return -1;
	}
	done = kvm.most && range->size > kvm.most ? kvm.most : range->size;
	range->gpa += done;
	range->size -= done;
	return 0;
}

static void expect_asked(unsigned int i, uint64_t gpa, uint64_t pages)
{
	assert_true(i < kvm.n);
	assert_int_equal(kvm.asked[i].gpa, gpa);
	assert_int_equal(kvm.asked[i].size, pages * PAGE);
}

/* Runs that are close to each other are asked for in one, with what is between them. */
static void test_map(void **state)
{
	static const uint32_t pages[] = {3, 4, 5 + HOTSET_GAP, 5 + HOTSET_GAP + 2 + HOTSET_GAP,
					 700};
	struct rig r;

	(void)state;
	memset(&kvm, 0, sizeof(kvm));
	rig_init(&r, 4 * MIB);
	for (size_t i = 0; i < ARRAY_SIZE(pages); i++)
		mark(&r, CTL_HOTSET_READY, pages[i]);
	mark(&r, CTL_HOTSET_CALL, 900);
	assert_int_equal(hotsets_learn(&r.hot, &r.err), 0);
	hotsets_map(&r.hot, &r.ram, VCPU_FD, CTL_HOTSET_READY, &kvm.stop);
	assert_int_equal(kvm.n, 3);
	expect_asked(0, 3 * PAGE, 3 + HOTSET_GAP);
	expect_asked(1, pages[3] * PAGE, 1);
	expect_asked(2, 700 * PAGE, 1);
	hotsets_map(&r.hot, &r.ram, VCPU_FD, CTL_HOTSET_CALL, &kvm.stop);
	assert_int_equal(kvm.n, 4);
	expect_asked(3, 900 * PAGE, 1);
	rig_free(&r);
}

/* The guest has what is above the gap somewhere else. */
static void test_map_at_the_gap(void **state)
{
	static const uint32_t low = (uint32_t)(GMEM_GAP_START / PAGE);
	struct rig r;

	(void)state;
	memset(&kvm, 0, sizeof(kvm));
	rig_init(&r, GMEM_GAP_START + 4 * MIB);
	for (uint32_t i = low - 2; i < low + 3; i++)
		mark(&r, CTL_HOTSET_READY, i);
	mark(&r, CTL_HOTSET_READY, low + 600);
	mark(&r, CTL_HOTSET_CALL, low - 1 - HOTSET_GAP);
	mark(&r, CTL_HOTSET_CALL, low + 700);
	assert_int_equal(hotsets_learn(&r.hot, &r.err), 0);
	hotsets_map(&r.hot, &r.ram, VCPU_FD, CTL_HOTSET_READY, &kvm.stop);
	assert_int_equal(kvm.n, 3);
	expect_asked(0, GMEM_GAP_START - 2 * PAGE, 2);
	expect_asked(1, GMEM_HIGH_START, 3);
	expect_asked(2, GMEM_HIGH_START + 600 * PAGE, 1);
	hotsets_map(&r.hot, &r.ram, VCPU_FD, CTL_HOTSET_CALL, &kvm.stop);
	assert_int_equal(kvm.n, 5);
	expect_asked(3, GMEM_GAP_START - (1 + HOTSET_GAP) * PAGE, 1);
	expect_asked(4, GMEM_HIGH_START + 700 * PAGE, 1);
	rig_free(&r);
}

/* What a signal cuts short is let be, but the rest is not; an error is the end, and so is a wish.
 */
static void test_map_in_parts(void **state)
{
	static const struct {
		unsigned int fail_at, error, stop_at, asked;
	} cases[] = {
		{0, 0, 0, 3},          {2, EINTR, 0, 3}, {2, ENOMEM, 0, 2},
		{1, EOPNOTSUPP, 0, 1}, {0, 0, 1, 1},     {2, EINTR, 2, 2},
	};
	struct rig r;

	(void)state;
	rig_init(&r, 4 * MIB);
	for (uint32_t i = 10; i < 15; i++)
		mark(&r, CTL_HOTSET_READY, i);
	mark(&r, CTL_HOTSET_READY, 300);
	mark(&r, CTL_HOTSET_READY, 500);
	assert_int_equal(hotsets_learn(&r.hot, &r.err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		memset(&kvm, 0, sizeof(kvm));
		kvm.most = 2 * PAGE;
		kvm.fail_at = cases[i].fail_at;
		kvm.error = cases[i].error;
		kvm.stop_at = cases[i].stop_at;
		hotsets_map(&r.hot, &r.ram, VCPU_FD, CTL_HOTSET_READY, &kvm.stop);
		assert_int_equal(kvm.n, cases[i].asked);
		expect_asked(0, 10 * PAGE, 5);
	}
	/* Wanted before it has begun. */
	memset(&kvm, 0, sizeof(kvm));
	kvm.stop = 1;
	hotsets_map(&r.hot, &r.ram, VCPU_FD, CTL_HOTSET_READY, &kvm.stop);
	assert_int_equal(kvm.n, 0);
	rig_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_runs),
		cmocka_unit_test(test_nothing_written),
		cmocka_unit_test(test_bound),
		cmocka_unit_test(test_without_a_rehearsal),
		cmocka_unit_test(test_populate),
		cmocka_unit_test(test_map),
		cmocka_unit_test(test_map_at_the_gap),
		cmocka_unit_test(test_map_in_parts),
		cmocka_unit_test(test_a_bitmap_that_changes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
