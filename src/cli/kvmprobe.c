/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe guest of kvmprobe.h. Everything that may hang happens in a child
 * process; the result is one line over a pipe, empty for success. The child
 * uses no allocation and no stdio buffer of the parent.
 */
#define _GNU_SOURCE
#include "cli/kvmprobe.h"

#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define PROBE_PORT  0xf4
#define PROBE_VALUE 0x2a
#define PROBE_GPA   0x1000

/* mov al, PROBE_VALUE; out PROBE_PORT, al; hlt */
static const unsigned char probe_code[] = {0xb0, PROBE_VALUE, 0xe6, PROBE_PORT, 0xf4};

/* The text of a failed step; the steps below return it instead of an errno. */
struct probe {
	char text[120];
	int vm, vcpu;
	struct kvm_run *run;
};

static int probe_failed(struct probe *p, const char *step)
{
	snprintf(p->text, sizeof(p->text), "%s failed: %s", step, strerror(errno));
	return -1;
}

static int probe_create(struct probe *p)
{
	struct kvm_userspace_memory_region slot = {.guest_phys_addr = PROBE_GPA,
						   .memory_size = 4096};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	void *page;
	int size;

	if (kvm < 0)
		return probe_failed(p, "opening /dev/kvm");
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return probe_failed(p, "KVM's version check");
	p->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (p->vm < 0)
		return probe_failed(p, "creating a VM");
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return probe_failed(p, "mapping a page");
	memcpy(page, probe_code, sizeof(probe_code));
	slot.userspace_addr = (uintptr_t)page;
	if (ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		return probe_failed(p, "giving the VM memory");
	p->vcpu = ioctl(p->vm, KVM_CREATE_VCPU, 0);
	if (p->vcpu < 0)
		return probe_failed(p, "creating a virtual processor");
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	p->run = size < (int)sizeof(*p->run)
			 ? MAP_FAILED
			 : mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu, 0);
	if (p->run == MAP_FAILED)
		return probe_failed(p, "mapping the virtual processor");
	return 0;
}

static int probe_registers(struct probe *p)
{
	struct kvm_regs regs = {.rip = PROBE_GPA, .rflags = 2};
	struct kvm_sregs sregs;

	if (ioctl(p->vcpu, KVM_GET_SREGS, &sregs) < 0)
		return probe_failed(p, "reading registers");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(p->vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(p->vcpu, KVM_SET_REGS, &regs) < 0)
		return probe_failed(p, "setting registers");
	return 0;
}

static int probe_execute(struct probe *p)
{
	const uint8_t *value;

	if (ioctl(p->vcpu, KVM_RUN, 0) < 0)
		return probe_failed(p, "running the guest");
	value = (const uint8_t *)p->run + p->run->io.data_offset;
	if (p->run->exit_reason != KVM_EXIT_IO || p->run->io.port != PROBE_PORT ||
	    *value != PROBE_VALUE) {
		snprintf(p->text, sizeof(p->text),
			 "the guest's first instructions ended with exit reason %u",
			 p->run->exit_reason);
		return -1;
	}
	if (ioctl(p->vcpu, KVM_RUN, 0) < 0)
		return probe_failed(p, "running the guest again");
	if (p->run->exit_reason != KVM_EXIT_HLT) {
		snprintf(p->text, sizeof(p->text), "the guest's halt ended with exit reason %u",
			 p->run->exit_reason);
		return -1;
	}
	return 0;
}

static void probe_child(int out) __attribute__((noreturn));
static void probe_child(int out)
{
	struct probe p = {.vm = -1, .vcpu = -1};
	int ok;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	ok = probe_create(&p) == 0 && probe_registers(&p) == 0 && probe_execute(&p) == 0;
	if (!ok && io_write_full(out, p.text, strlen(p.text)) < 0)
		_exit(2);
	_exit(ok ? 0 : 1);
}

int kvmprobe_run(int time_limit_ms, char *text, size_t size)
{
	struct pollfd pfd = {.events = POLLIN};
	int pipefd[2], status = 0;
	ssize_t n = 0;
	pid_t pid;

	if (pipe2(pipefd, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
		int e = errno;

		snprintf(text, size, "the probe could not be started: %s", strerror(e));
		return -e;
	}
	if (pid == 0)
		probe_child(pipefd[1]);
	close(pipefd[1]);
	pfd.fd = pipefd[0];
	/* End of file comes when the child is gone: by itself, or by the kill below. */
	if (poll(&pfd, 1, time_limit_ms) == 0) {
		kill(pid, SIGKILL);
		snprintf(text, size, "the guest did not run: no answer within %d ms",
			 time_limit_ms);
		status = -1;
	} else {
		n = io_read_some(pipefd[0], text, size - 1);
		text[n > 0 ? n : 0] = '\0';
	}
	close(pipefd[0]);
	if (status < 0) {
		waitpid(pid, NULL, 0);
		return -ETIMEDOUT;
	}
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		snprintf(text, size, "a small guest ran");
		return 0;
	}
	if (n <= 0)
		snprintf(text, size, "the probe ended without an answer");
	return -EIO;
}
