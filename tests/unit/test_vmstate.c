/* SPDX-License-Identifier: Apache-2.0 */
/*
 * State of processors and of a whole machine through KVM: saved, loaded into
 * another VM, saved again, the same bytes. No guest code runs, so this works on
 * every host with /dev/kvm. (The devices' own round trips are in the tests of
 * each: test_machine, test_blk, test_vsock_state, test_virtio_mmio.)
 */
#define _GNU_SOURCE
#include "unit.h"

#include "lib/io.h"
#include "lib/layerfile.h"
#include "tests/vmm/still.h"
#include "vmm/fork/fork.h"
#include "vmm/x86/regs.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MSR_APIC_BASE      0x1b
#define MSR_SYSENTER_EIP   0x176
#define MSR_PAT            0x277
#define MSR_LSTAR          0xc0000082
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_KVM_CLOCK      0x4b564d01
#define VCPUS              2u

#define MUST(x)                                                                 \
	do {                                                                    \
		if (!(x)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); \
			_exit(1);                                               \
		}                                                               \
	} while (0)

/* A VM with processors and 16 MiB. */
struct vm {
	struct machine m; /* only what vcpu_create() looks at */
	struct gmem ram;
	struct vcpu v[VCPUS];
	struct cpuid_table cpuid;
	struct msr_list msrs;
};

static void vm_init(struct vm *vm)
{
	struct err err = {0};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	memset(vm, 0, sizeof(*vm));
	assert_int_equal(kvm_vm_init(&vm->m.kvm, kvm, &err), 0);
	assert_int_equal(gmem_init(&vm->ram, 16u << 20, &err), 0);
	assert_int_equal(kvm_vm_create(&vm->m.kvm, &vm->ram, NULL, false, &err), 0);
	assert_int_equal(cpuid_init(&vm->cpuid, kvm, &err), 0);
	for (unsigned int i = 0; i < VCPUS; i++) {
		assert_int_equal(vcpu_create(&vm->v[i], &vm->m, i, &err), 0);
		assert_int_equal(cpuid_set(&vm->cpuid, vm->v[i].fd, i, VCPUS, &err), 0);
	}
	assert_int_equal(msr_list_init(&vm->msrs, kvm, vm->v[0].fd, &err), 0);
}

static void vm_free(struct vm *vm)
{
	for (unsigned int i = 0; i < VCPUS; i++) {
		munmap(vm->v[i].run, vm->v[i].run_size);
		close(vm->v[i].fd);
	}
	kvm_vm_free(&vm->m.kvm);
	gmem_free(&vm->ram);
}

static void set_msr(int fd, uint32_t index, uint64_t value)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} w = {.h.nmsrs = 1, .e = {.index = index, .data = value}};

	assert_int_equal(ioctl(fd, KVM_SET_MSRS, &w), 1);
}

/* A processor in the middle of something: every group of its state has a value of its own. */
static void disturb(struct vm *vm)
{
	int fd = vm->v[0].fd;
	struct kvm_regs regs;
	struct kvm_xsave xsave;
	struct kvm_debugregs debug;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct err err = {0};

	assert_int_equal(regs_write_tables(&vm->ram, &err), 0);
	assert_int_equal(regs_init_boot(fd, 0x100000, 0x7000, &err), 0);
	assert_int_equal(ioctl(fd, KVM_GET_REGS, &regs), 0);
	regs.rax = 0x1122334455667788;
	regs.r15 = UINT64_MAX;
	regs.rflags |= 0x8c5;
	assert_int_equal(ioctl(fd, KVM_SET_REGS, &regs), 0);
	assert_int_equal(ioctl(fd, KVM_GET_XSAVE, &xsave), 0);
	((uint8_t *)xsave.region)[160 + 3] = 0x77; /* XMM0 */
	xsave.region[512 / 4] |= 2;                /* XSTATE_BV: SSE is in use */
	assert_int_equal(ioctl(fd, KVM_SET_XSAVE, &xsave), 0);
	assert_int_equal(ioctl(fd, KVM_GET_DEBUGREGS, &debug), 0);
	debug.db[1] = 0x1234000;
	assert_int_equal(ioctl(fd, KVM_SET_DEBUGREGS, &debug), 0);
	assert_int_equal(ioctl(fd, KVM_GET_LAPIC, &lapic), 0);
	lapic.regs[0x80] = 0x20;             /* TPR */
	lapic.regs[0x200 + 0x10 + 1] = 0x02; /* IRR: vector 41 waits */
	lapic.regs[0xf1] = 0x01;             /* SVR: enabled */
	assert_int_equal(ioctl(fd, KVM_SET_LAPIC, &lapic), 0);
	set_msr(fd, MSR_LSTAR, 0xffffffff81a00010);
	set_msr(fd, MSR_KERNEL_GS_BASE, 0xffff888000000000);
	set_msr(fd, MSR_SYSENTER_EIP, 0x4242);
	set_msr(fd, MSR_PAT, 0x0007040600070406);
	set_msr(fd, MSR_KVM_CLOCK, 0x200001);
	assert_int_equal(ioctl(fd, KVM_GET_VCPU_EVENTS, &events), 0);
	events.nmi.masked = 1;
	events.flags |= KVM_VCPUEVENT_VALID_SHADOW;
	events.interrupt.shadow = 1; /* between STI and the next instruction */
	assert_int_equal(ioctl(fd, KVM_SET_VCPU_EVENTS, &events), 0);
}

/* Fields by name, so that a failure says which. */
static void assert_same(const struct vcpu_state *a, const struct vcpu_state *b)
{
	assert_memory_equal(&a->mp, &b->mp, sizeof(a->mp));
	assert_memory_equal(&a->regs, &b->regs, sizeof(a->regs));
	assert_memory_equal(&a->sregs, &b->sregs, sizeof(a->sregs));
	assert_memory_equal(&a->xcrs, &b->xcrs, sizeof(a->xcrs));
	assert_memory_equal(&a->debug, &b->debug, sizeof(a->debug));
	assert_memory_equal(&a->lapic, &b->lapic, sizeof(a->lapic));
	assert_memory_equal(&a->events, &b->events, sizeof(a->events));
	assert_int_equal(a->tsc_offset, b->tsc_offset);
	assert_int_equal(a->nmsrs, b->nmsrs);
	for (uint32_t i = 0; i < a->nmsrs; i++) {
		assert_int_equal(a->msrs[i].index, b->msrs[i].index);
		if (a->msrs[i].data != b->msrs[i].data)
			fail_msg("MSR %#x: %#llx, then %#llx", a->msrs[i].index,
				 (unsigned long long)a->msrs[i].data,
				 (unsigned long long)b->msrs[i].data);
	}
	assert_memory_equal(a->xsave, b->xsave, sizeof(a->xsave));
}

static void test_vcpu_save_load_save(void **state)
{
	static struct vcpu_state a[VCPUS], b[VCPUS];
	struct vm *one = malloc(sizeof(*one)), *two = malloc(sizeof(*two));
	struct err err = {0};

	(void)state;
	vm_init(one);
	vm_init(two);
	disturb(one);
	for (unsigned int i = 0; i < VCPUS; i++)
		assert_int_equal(vcpu_state_save(&a[i], one->v[i].fd, &one->msrs, &err), 0);
	for (unsigned int i = 0; i < VCPUS; i++)
		assert_int_equal(vcpu_state_load(&a[i], two->v[i].fd, 0, &err), 0);
	for (unsigned int i = 0; i < VCPUS; i++) {
		assert_int_equal(vcpu_state_save(&b[i], two->v[i].fd, &two->msrs, &err), 0);
		assert_same(&a[i], &b[i]);
	}
	assert_int_equal(b[0].regs.rax, 0x1122334455667788);
	assert_int_equal(b[0].xsave[163], 0x77);
	assert_int_equal(b[0].debug.db[1], 0x1234000);
	assert_int_equal(b[0].events.nmi.masked, 1);
	assert_int_equal(b[0].events.interrupt.shadow, 1);
	assert_int_equal(b[0].lapic.regs[0x80], 0x20);
	assert_int_equal(b[0].lapic.regs[0x211], 0x02);
	assert_int_not_equal(b[0].mp.mp_state, b[1].mp.mp_state); /* one waits for its start */
	/* A shift of time changes the offset, by as much; but some KVMs (PVM) always have 0. */
	assert_int_equal(vcpu_state_load(&a[0], two->v[0].fd, 1000, &err), 0);
	assert_int_equal(vcpu_state_save(&b[0], two->v[0].fd, &two->msrs, &err), 0);
	assert_true(b[0].tsc_offset == a[0].tsc_offset + 1000 || b[0].tsc_offset == 0);
	vm_free(one);
	vm_free(two);
	free(one);
	free(two);
}

/* A guest's clock that was set at some time and read at another has gone on by no more than passed
   between the two; a busy host may take long for both. */
static void test_clock(void **state)
{
	struct vm *one = malloc(sizeof(*one)), *two = malloc(sizeof(*two));
	uint64_t shift = 1, slept = 200000000, began;
	struct clock_state a, b;
	struct err err = {0};

	(void)state;
	vm_init(one);
	vm_init(two);
	usleep(20000); /* so that the clocks differ */
	assert_int_equal(clock_state_save(&a, one->m.kvm.fd, &err), 0);
	usleep(slept / 1000);
	began = io_now_ns();
	assert_int_equal(clock_state_load(&a, two->m.kvm.fd, TIME_STOOD, &shift, &err), 0);
	assert_int_equal(clock_state_save(&b, two->m.kvm.fd, &err), 0);
	assert_true(b.clock.clock >= a.clock.clock);
	assert_true(b.clock.clock - a.clock.clock < io_now_ns() - began + slept / 4);
	assert_true((int64_t)shift < 0); /* the TSC is put back by the time that passed */
	if (a.clock.flags & KVM_CLOCK_REALTIME) {
		assert_int_equal(clock_state_load(&a, two->m.kvm.fd, TIME_CONTINUES, &shift, &err),
				 0);
		assert_int_equal(clock_state_save(&b, two->m.kvm.fd, &err), 0);
		assert_true(b.clock.clock - a.clock.clock >= slept / 20 * 19);
		assert_int_equal(shift, 0);
	}
	vm_free(one);
	vm_free(two);
	free(one);
	free(two);
}

static void on_status(void *arg, uint32_t code)
{
	(void)arg;
	(void)code;
}

static void on_refused(void *arg, uint32_t cookie, int errnum)
{
	(void)arg;
	(void)cookie;
	(void)errnum;
}

static void on_disk(void *arg, int errnum, uint64_t failures)
{
	(void)arg;
	(void)errnum;
	(void)failures;
}

static void on_ended(void *arg, const struct exit_reason *why)
{
	(void)arg;
	fprintf(stderr, "%s\n", why->text);
}

static int file_of(const void *p, size_t len, unsigned int seals)
{
	int fd = memfd_create("file", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	MUST(fd >= 0 && io_pwrite_full(fd, p, len, 0) == 0);
	MUST(!seals || fcntl(fd, F_ADD_SEALS, seals) == 0);
	return fd;
}

static struct layer_fds layer(void)
{
	struct layer_fds f;

	MUST(layerfile_make("/tmp", &f.rw, &f.ro) == 0);
	return f;
}

static void boot(struct machine *m, struct loop *loop)
{
	static const uint8_t zeros[CONSOLE_RING_SIZE];
	const struct machine_events events = {.status = on_status,
					      .connected = on_status,
					      .refused = on_refused,
					      .disk_failed = on_disk,
					      .ended = on_ended};
	const struct {
		Elf64_Ehdr eh;
		Elf64_Phdr ph;
	} kernel = {
		.eh = {.e_ident = ELFMAG "\2\1\1",
		       .e_type = ET_EXEC,
		       .e_machine = EM_X86_64,
		       .e_entry = 0x100000,
		       .e_phoff = sizeof(Elf64_Ehdr),
		       .e_phentsize = sizeof(Elf64_Phdr),
		       .e_phnum = 1},
		.ph = {.p_type = PT_LOAD, .p_paddr = 0x100000, .p_memsz = 4096},
	};
	struct layer_fds top = layer();
	struct machine_config cfg = {.mem_mib = 128, .vcpus = VCPUS, .disk_mib = 64, .cmdline = ""};
	struct err err = {0};

	cfg.fds[CTL_BOOT_KVM] = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	cfg.fds[CTL_BOOT_KERNEL] = file_of(&kernel, sizeof(kernel), 0);
	cfg.fds[CTL_BOOT_INITRD] = file_of(zeros, 4096, 0);
	cfg.fds[CTL_BOOT_ROOT] = file_of(zeros, 4096, F_SEAL_SHRINK | F_SEAL_WRITE);
	cfg.fds[CTL_BOOT_CONSOLE] = file_of(zeros, sizeof(zeros), 0);
	cfg.fds[CTL_BOOT_DISK_RW] = top.rw;
	cfg.fds[CTL_BOOT_DISK_RO] = top.ro;
	MUST(loop_init(loop) == 0);
	machine_init(m, loop, &events);
	m->run = still_run;
	if (machine_boot(m, &cfg, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
		_exit(1);
	}
}

/* Everything of a machine that is saved, but for the clock, which goes on. */
struct whole {
	struct vcpu_state vcpu[VCPUS];
	struct ioapic_state ioapic;
	struct console_state console;
	int len[MACHINE_DEVICES];
	uint8_t device[MACHINE_DEVICES][VIRTIO_STATE_MAX];
};

static void save_whole(struct machine *m, struct whole *w)
{
	struct err err = {0};

	memset(w, 0, sizeof(*w));
	MUST(machine_pause(m, &err) == 0);
	memcpy(w->vcpu, m->saved, sizeof(w->vcpu));
	ioapic_save(&m->ioapic, &w->ioapic);
	console_save(&m->console, &w->console);
	for (unsigned int i = 0; i < MACHINE_DEVICES; i++) {
		w->len[i] = virtio_dev_save(m->devices[i], w->device[i], VIRTIO_STATE_MAX);
		MUST(w->len[i] > 0);
	}
}

/* The parent's process: forks, is saved afterwards, and says by its status if all went well. */
static void fork_machine(bool paused)
{
	static struct whole before, after;
	static struct machine m;
	static struct loop loop;
	struct fork_child child = {.ctl_fd = -1, .gate_fd = open("/dev/zero", O_RDONLY)};
	struct layer_fds top = layer();
	struct fork_times t;
	struct err err = {0};
	uint64_t offset[2];
	pid_t pid;

	boot(&m, &loop);
	console_write(&m.console, 7, 0x5c); /* its scratch register */
	ioapic_raise(&m.ioapic, 16);        /* masked: it waits */
	if (paused)
		save_whole(&m, &before);
	child.top = layer();
	child.console_fd = memfd_create("console", MFD_CLOEXEC);
	MUST(ftruncate(child.console_fd, CONSOLE_RING_SIZE) == 0);
	pid = machine_fork(&m, &top, CTL_FORK_PLAIN, &t, &err);
	MUST(pid >= 0);
	if (pid == 0) {
		if (!paused) /* the parent's state of the moment is what was inherited */
			memcpy(before.vcpu, m.saved, sizeof(before.vcpu));
		MUST(loop_fork_child(&loop) == 0);
		if (machine_fork_child(&m, &child, &err) < 0) {
			fprintf(stderr, "%s\n", err.msg);
			_exit(1);
		}
		save_whole(&m, &after);
		for (unsigned int i = 0; i < VCPUS; i++) {
			offset[0] = before.vcpu[i].tsc_offset;
			offset[1] = after.vcpu[i].tsc_offset;
			MUST(paused ? offset[0] > offset[1] || offset[1] == 0
				    : offset[0] == offset[1]);
			after.vcpu[i].tsc_offset = offset[0];
		}
		MUST(memcmp(before.vcpu, after.vcpu, sizeof(before.vcpu)) == 0);
		MUST(after.console.scratch == 0x5c && after.ioapic.pending & 1u << 16);
		if (paused)
			MUST(memcmp(&before, &after, sizeof(before)) == 0);
		_exit(0);
	}
	save_whole(&m, &after);
	MUST(!paused || memcmp(&before, &after, sizeof(before)) == 0);
	_exit(0);
}

/* The machine's process and its child are children of ours (CLONE_PARENT): both must end well. */
static void run_fork(bool paused)
{
	int status, ended = 0;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		fork_machine(paused);
	while (waitpid(-1, &status, 0) > 0) {
		assert_int_equal(status, 0);
		ended++;
	}
	assert_int_equal(ended, 2);
}

static void test_machine_forked_live(void **state)
{
	(void)state;
	run_fork(false);
}

static void test_machine_forked_paused(void **state)
{
	(void)state;
	run_fork(true);
}

static int need_kvm(void **state)
{
	(void)state;
	if (access("/dev/kvm", R_OK | W_OK) < 0)
		skip();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_vcpu_save_load_save, need_kvm),
		cmocka_unit_test_setup(test_clock, need_kvm),
		cmocka_unit_test_setup(test_machine_forked_live, need_kvm),
		cmocka_unit_test_setup(test_machine_forked_paused, need_kvm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
