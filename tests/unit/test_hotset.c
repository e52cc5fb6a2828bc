/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hot sets: from the bitmaps of a rehearsal to runs of pages, and what populating them makes of a
 * child's memory.
 */
#include "unit.h"

#include "vmm/core/hotset.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_runs),     cmocka_unit_test(test_nothing_written),
		cmocka_unit_test(test_bound),    cmocka_unit_test(test_without_a_rehearsal),
		cmocka_unit_test(test_populate),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
