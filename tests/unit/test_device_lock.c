/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who gets the device lock when vCPUs keep the disk busy: the loop thread in its turn, and the
 * vCPUs, all of them, afterwards.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "disk_world.h"
#include "lib/io.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#define VCPUS   2u
#define ROUNDS  60u
#define STAY_NS 200000u

/* One stay: the device is held, so a notification does no more than to call this. */
struct busy {
	struct disk_world *w;
	_Atomic unsigned stays;
	_Atomic bool stop;
};

static void on_again(void *arg)
{
	struct busy *b = arg;
	uint64_t until = io_now_ns() + STAY_NS;

	b->stays++;
	while (io_now_ns() < until)
		;
}

/* A vCPU whose guest notifies the disk, and again as soon as it has come back. */
static void *vcpu_busy(void *arg)
{
	struct busy *b = arg;
	struct kvm_run run = {.exit_reason = KVM_EXIT_MMIO};
	struct vcpu v = {.machine = &b->w->m, .run = &run};
	struct exit_reason why;
	unsigned exits = 0;

	run.mmio.phys_addr =
		VM_MMIO_BASE + MACHINE_DEV_BLK * VM_MMIO_STRIDE + VIRTIO_MMIO_QUEUE_NOTIFY;
	run.mmio.is_write = 1;
	run.mmio.len = 4;
	for (; !b->stop; exits++)
		assert_int_equal(exit_handle(v.machine, &v, &why), 0);
	return (void *)(uintptr_t)exits;
}

/* The vCPUs on one processor, the loop on another: so a vCPU is back before the loop has woken up.
 */
static void pin(pthread_t t, unsigned n)
{
	cpu_set_t have, one;

	CPU_ZERO(&one);
	assert_int_equal(sched_getaffinity(0, sizeof(have), &have), 0);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &have) && CPU_COUNT(&have) > 1 && n-- == 0)
			CPU_SET(cpu, &one);
	if (CPU_COUNT(&one))
		assert_int_equal(pthread_setaffinity_np(t, sizeof(one), &one), 0);
}

static void test_the_loop_is_not_passed_over(void **state)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	struct disk_world *w = *state;
	struct busy b = {.w = w};
	unsigned passed = 0;
	pthread_t t[VCPUS];

	machine_disk_hold(&w->m);
	w->m.disk.blk.events.again = on_again;
	w->m.disk.blk.events.arg = &b;
	rig_submit(&w->r, 0, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
	for (unsigned i = 0; i < VCPUS; i++) {
		assert_int_equal(pthread_create(&t[i], NULL, vcpu_busy, &b), 0);
		pin(t[i], 0);
	}
	pin(pthread_self(), 1);
	while (b.stays < 2 * VCPUS)
		nanosleep(&pause, NULL);
	for (unsigned i = 0; i < ROUNDS; i++) {
		unsigned before = b.stays;

		device_lock_loop(&w->m.lock);
		passed += b.stays - before;
		device_unlock(&w->m.lock);
		nanosleep(&pause, NULL);
	}
	b.stop = true;
	for (unsigned i = 0; i < VCPUS; i++) {
		void *exits;

		assert_int_equal(pthread_join(t[i], &exits), 0);
		assert_true((uintptr_t)exits > ROUNDS / 4); /* nobody was forgotten outside */
	}
	/* One of each vCPU that was on its way; and what came before this thread was at the lock.
	 */
	assert_in_range(passed, 0, ROUNDS * (VCPUS + 8));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_the_loop_is_not_passed_over, disk_world_setup,
						disk_world_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
