/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a fork of a VM costs on a host whose KVM can keep a VM's state, whether
 * or not it can run one: the VMM's own code, jail included, from CTL_FORK to
 * CTL_BOOTED, with a guest that has touched all its memory once and then stands
 * still. Prints "NAME VALUE" lines, microseconds, one a fork; fork_native.py
 * makes a table of them.
 *
 * usage: forkstate MIB VCPUS FORKS [4k] [paused|chain]
 *   4k      no huge pages
 *   paused  the parent is a template: nothing to park and to save
 *   chain   each child is the next parent, and its own parent ends
 *
 * pause       park, save, fork(2): for so long the parent's guest stands still
 * save, fork  of it
 * vm          from the call of fork(2) to the child's running vCPUs
 * booted      from the request to the child's message, as the daemon sees it
 * reaped      from the end of the child's control socket to its waitpid()
 * vm_close    descriptors and mappings of a VM like it, in a process that lives on
 */
#define _GNU_SOURCE
#include "lib/io.h"
#include "tests/guest/vmtool.h"
#include "tests/vmm/still.h"
#include "vmm/ctl.h"
#include "vmm/jail/jail.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define SMALL_PAGES "FORKSTATE_4K" /* environment of the VMM, which takes no options */
#define KERNEL_AT   0x100000u

static void touch(const struct gmem *ram)
{
	for (uint64_t at = 0; at < ram->size; at += 4096)
		*(volatile uint8_t *)(ram->base + at) += 1;
}

/* The first vCPU touches memory as a guest would, and reports; then all stand still. */
static int run(struct vcpu *v)
{
	static bool touched; /* inherited by children */
	struct machine *m = v->machine;

	if (v->id == 0 && !touched) {
		touched = true;
		touch(&m->ram);
		device_lock_vcpu(&m->lock);
		machine_report_status(m, GUEST_STATUS_READY);
		device_unlock(&m->lock);
	}
	return still_run(v);
}

/* As podflare-vmm's main(). */
static int vmm(void)
{
	static struct ctl ctl;
	static struct loop loop;
	static struct jail jail;
	struct err err = {0};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	if (loop_init(&loop) < 0 || jail_enter(&jail, true, &err) < 0)
		return 1;
	ctl_init(&ctl, &loop, CTL_FD);
	ctl.machine.run = run;
	ctl.machine.jail = &jail;
	_exit(ctl_run(&ctl) < 0);
}

/* A file that the loader takes, of one segment without content; its path stays valid. */
static const char *kernel(void)
{
	static char path[64];
	const struct {
		Elf64_Ehdr eh;
		Elf64_Phdr ph;
	} file = {
		.eh = {.e_ident = ELFMAG "\2\1\1",
		       .e_type = ET_EXEC,
		       .e_machine = EM_X86_64,
		       .e_entry = KERNEL_AT,
		       .e_phoff = sizeof(Elf64_Ehdr),
		       .e_phentsize = sizeof(Elf64_Phdr),
		       .e_phnum = 1},
		.ph = {.p_type = PT_LOAD, .p_paddr = KERNEL_AT, .p_memsz = 4096},
	};
	int fd = memfd_create("kernel", MFD_CLOEXEC);

	if (fd < 0 || io_pwrite_full(fd, &file, sizeof(file), 0) < 0)
		vmtool_die("kernel");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return path;
}

static void print_us(const char *name, uint64_t us)
{
	printf("%s %llu\n", name, (unsigned long long)us);
}

static void fork_once(struct vmtool *parent, pid_t *parent_pid, bool chain)
{
	struct vmtool child = {0};
	struct ctl_msg forked, booted;
	uint64_t start = io_now_ns(), pause = 0, end;
	pid_t pid;

	vmtool_fork(parent, &child);
	vmtool_expect(parent, CTL_FORKED, &forked);
	if (forked.code) {
		fprintf(stderr, "fork: %s\n", forked.text);
		exit(1);
	}
	vmtool_expect(&child, CTL_BOOTED, &booted);
	end = io_now_ns();
	pid = (pid_t)forked.value[CTL_FORKED_PID];
	for (int i = CTL_FORKED_PARK_US; i <= CTL_FORKED_FORK_US; i++)
		pause += forked.value[i];
	print_us("pause", pause);
	print_us("park", forked.value[CTL_FORKED_PARK_US]);
	print_us("save", forked.value[CTL_FORKED_SAVE_US]);
	print_us("fork", forked.value[CTL_FORKED_FORK_US]);
	print_us("vm", booted.value[CTL_BOOTED_VM_US]);
	print_us("booted", (end - start) / 1000);
	if (chain) {
		struct vmtool t = *parent;
		pid_t p = *parent_pid;

		*parent = child;
		*parent_pid = pid;
		child = t;
		pid = p;
	}
	munmap(child.ring, CONSOLE_RING_SIZE);
	start = io_now_ns();
	close(child.sock);
	if (waitpid(pid, NULL, 0) < 0)
		vmtool_die("waitpid");
	print_us("reaped", (io_now_ns() - start) / 1000);
}

static void close_once(struct kvm_vm *vm, const struct gmem *ram, const struct cpuid_table *cpuid,
		       unsigned int vcpus)
{
	static struct machine m;
	static struct vcpu v[MACHINE_MAX_VCPUS];
	struct err err = {0};
	int rc = kvm_vm_create(vm, ram, NULL, false, &err);
	uint64_t start;

	m.kvm = *vm;
	for (unsigned int i = 0; rc == 0 && i < vcpus; i++) {
		rc = vcpu_create(&v[i], &m, i, &err);
		if (rc == 0)
			rc = cpuid_set(cpuid, v[i].fd, i, vcpus, &err);
	}
	if (rc < 0) {
		fprintf(stderr, "%s\n", err.msg);
		exit(1);
	}
	start = io_now_ns();
	for (unsigned int i = 0; i < vcpus; i++) {
		munmap(v[i].run, v[i].run_size);
		close_fd(&v[i].fd);
	}
	close_fd(&vm->fd);
	print_us("vm_close", (io_now_ns() - start) / 1000);
}

static void measure_close(uint32_t mib, unsigned int vcpus, int n)
{
	static struct cpuid_table cpuid;
	struct gmem ram;
	struct kvm_vm vm;
	struct err err = {0};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0 || kvm_vm_init(&vm, kvm, &err) < 0 || cpuid_init(&cpuid, kvm, &err) < 0 ||
	    gmem_init(&ram, (uint64_t)mib << 20, &err) < 0)
		vmtool_die("VM to be closed");
	touch(&ram);
	for (int i = 0; i < n; i++)
		close_once(&vm, &ram, &cpuid, vcpus);
	gmem_free(&ram);
	kvm_vm_free(&vm);
}

int main(int argc, char **argv)
{
	struct vmtool parent = {0};
	struct ctl_msg m;
	const char *file;
	bool paused = false, chain = false;
	pid_t pid = -1; /* of the first VMM: our only child then */

	if (strcmp(argv[0], "podflare-vmm") == 0) {
		if (getenv(SMALL_PAGES))
			prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
		return vmm();
	}
	if (argc < 4) {
		fprintf(stderr, "usage: forkstate MIB VCPUS FORKS [4k] [paused|chain]\n");
		return 2;
	}
	unsetenv(SMALL_PAGES);
	for (int i = 4; i < argc; i++) {
		if (strcmp(argv[i], "4k") == 0)
			setenv(SMALL_PAGES, "1", 1);
		paused = paused || strcmp(argv[i], "paused") == 0;
		chain = chain || strcmp(argv[i], "chain") == 0;
	}
	file = kernel();
	vmtool_boot(&parent, &(struct vmtool_boot){.vmm = "/proc/self/exe",
						   .kernel = file,
						   .initrd = file,
						   .root = file,
						   .mem_mib = (uint32_t)atoi(argv[1]),
						   .vcpus = (uint32_t)atoi(argv[2]),
						   .cmdline = ""});
	vmtool_expect(&parent, CTL_STATUS, &m);
	if (paused) {
		if (ctl_send(parent.sock, &(struct ctl_msg){.type = CTL_PAUSE}, NULL) < 0)
			vmtool_die("sending CTL_PAUSE");
		vmtool_expect(&parent, CTL_PAUSED, &m);
	}
	for (int i = 0; i < atoi(argv[3]); i++)
		fork_once(&parent, &pid, chain);
	close(parent.sock);
	if (getenv(SMALL_PAGES))
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	measure_close((uint32_t)atoi(argv[1]), (unsigned int)atoi(argv[2]), atoi(argv[3]));
	return 0;
}
