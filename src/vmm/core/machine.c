/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Assembly of a machine and the hand-over of what vCPU threads have to say.
 * The order of machine_boot() is the order of the hardware: memory, VM object,
 * interrupt controller, devices, kernel, processors.
 */
#define _GNU_SOURCE
#include "vmm/core/machine.h"
#include "lib/io.h"
#include "vmm/boot/acpi.h"
#include "vmm/boot/linux.h"
#include "vmm/x86/regs.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

/*
 * The machine's part of the kernel command line.
 * reboot=t panic=-1: a reboot or a panic ends the VM at once, by triple fault.
 * pci=conf1: see port_pci_address() in exit.c.
 * mitigations=off: user code is root in its own VM when it wants to be; the
 * wall is the VM, whose mitigations are the host's.
 * nowatchdog, audit=0, tsc=nowatchdog (the check of the TSC against kvmclock, twice a second: both
 * come from the same TSC), compaction_proactiveness=0 (kcompactd, twice a second), stat_interval
 * (once a second), psi=0 (averages of pressure, every two seconds): an idle guest must not wake up.
 */
#define MACHINE_CMDLINE                                                                   \
	"console=ttyS0 quiet psi=0 reboot=t panic=-1 pci=conf1 8250.nr_uarts=1 audit=0 "  \
	"nowatchdog "                                                                     \
	"tsc=nowatchdog sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=60 " \
	"mitigations=off transparent_hugepage=madvise random.trust_cpu=on cryptomgr.notests"

/*
 * In the emulated host the kernel's allocator does without CMPXCHG16B: QEMU 7.2 leaves garbage in
 * the flags behind one without a lock, and how that ends is up to the instructions around it
 * (box/README.md). Programs see the instruction by CPUID, and may use it.
 */
#define MACHINE_CMDLINE_TCG "clearcpuid=cx16"

void machine_init(struct machine *m, struct loop *loop, const struct machine_events *events)
{
	*m = (struct machine){.loop = loop, .events = *events, .handover_fd = -1, .run = vcpu_run};
	m->kvm = (struct kvm_vm){.kvm_fd = -1, .fd = -1};
	device_lock_init(&m->lock);
	vcpu_park_init(&m->park);
	vcpu_install_kick();
}

void machine_wake_loop(struct machine *m)
{
	uint64_t one = 1;

	if (io_write_some(m->handover_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: the loop is awake already */
}

/* With the lock held. The bound cannot be passed: see MACHINE_MAX_NEWS. */
static void machine_tell(struct machine *m, struct machine_news news)
{
	if (m->nnews == MACHINE_MAX_NEWS)
		return;
	m->news[m->nnews++] = news;
	machine_wake_loop(m);
}

void machine_report_status(struct machine *m, uint32_t code)
{
	if (m->nstatus == MACHINE_MAX_STATUS)
		return;
	m->nstatus++;
	machine_tell(m, (struct machine_news){.kind = NEWS_STATUS, .id = code});
}

static void machine_on_connected(void *arg, uint32_t cookie)
{
	machine_tell(arg, (struct machine_news){.kind = NEWS_CONNECTED, .id = cookie});
}

static void machine_on_refused(void *arg, uint32_t cookie, int errnum)
{
	machine_tell(arg,
		     (struct machine_news){.kind = NEWS_REFUSED, .id = cookie, .errnum = errnum});
}

/* The daemon sees the end of a stream on its own end of the socket pair. */
static void machine_on_closed(void *arg, uint32_t cookie)
{
	(void)arg;
	(void)cookie;
}

/* With the lock held. The loop takes the questions itself: machine_pass_on_questions(). */
static void machine_on_asked(void *arg)
{
	machine_wake_loop(arg);
}

void machine_end(struct machine *m, const struct exit_reason *why)
{
	device_lock_vcpu(&m->lock);
	if (!m->ended) {
		m->ended = 1;
		m->end_reason = *why;
	}
	machine_wake_loop(m);
	device_unlock(&m->lock);
}

static void machine_pass_on(struct machine *m, const struct machine_news *n)
{
	switch (n->kind) {
	case NEWS_STATUS:
		m->events.status(m->events.arg, n->id);
		break;
	case NEWS_CONNECTED:
		m->events.connected(m->events.arg, n->id);
		break;
	case NEWS_REFUSED:
		m->events.refused(m->events.arg, n->id, n->errnum);
		break;
	}
}

/* A bounded number: what the guest asks meanwhile wakes the loop again. */
static void machine_pass_on_questions(struct machine *m)
{
	for (unsigned int i = 0; i < VSOCK_ASKING; i++) {
		uint32_t id;

		device_lock_loop(&m->lock);
		id = vsock_next_asked(&m->vsock);
		device_unlock(&m->lock);
		if (!id)
			break;
		if (m->events.asked(m->events.arg, id) < 0)
			machine_reject(m, id);
	}
}

static void machine_on_handover(struct loop_src *src, uint32_t events)
{
	struct machine *m = src->arg;
	struct machine_news news[MACHINE_MAX_NEWS];
	unsigned int n;
	uint64_t count;
	int ended;

	(void)events;
	if (io_read_some(src->fd, &count, sizeof(count)) < 0)
		return;
	device_lock_loop(&m->lock);
	n = m->nnews;
	memcpy(news, m->news, n * sizeof(news[0]));
	m->nnews = 0;
	ended = m->ended;
	device_unlock(&m->lock);
	for (unsigned int i = 0; i < n; i++)
		machine_pass_on(m, &news[i]);
	machine_pass_on_questions(m);
	machine_disk_turn(m);
	if (ended)
		m->events.ended(m->events.arg, &m->end_reason);
}

static void machine_on_vsock(struct loop_src *src, uint32_t events)
{
	struct machine *m = src->arg;

	(void)events;
	device_lock_loop(&m->lock);
	vsock_handle_events(&m->vsock);
	device_unlock(&m->lock);
}

int machine_watch_vsock(struct machine *m, struct err *err)
{
	int rc;

	m->vsock_src = (struct loop_src){.fd = -1, .fn = machine_on_vsock, .arg = m};
	rc = loop_add(m->loop, &m->vsock_src, vsock_event_fd(&m->vsock), EPOLLIN);
	return rc < 0 ? err_set(err, -rc, "epoll") : 0;
}

static void machine_deliver_msi(void *arg, uint32_t address, uint32_t data)
{
	struct machine *m = arg;

	m->irqs_raised++;
	/* The guest can program an address that no local APIC answers to; that is its own loss. */
	if (kvm_vm_signal_msi(&m->kvm, address, data) < 0)
		return;
}

void machine_raise_irq(void *arg)
{
	struct machine_irq *irq = arg;

	ioapic_raise(&irq->machine->ioapic, irq->gsi);
}

int machine_init_handover(struct machine *m, struct err *err)
{
	int rc;

	m->handover_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (m->handover_fd < 0)
		return err_set(err, errno, "eventfd");
	m->handover = (struct loop_src){.fd = -1, .fn = machine_on_handover, .arg = m};
	rc = loop_add(m->loop, &m->handover, m->handover_fd, EPOLLIN);
	return rc < 0 ? err_set(err, -rc, "epoll") : 0;
}

static int machine_init_vcpus(struct machine *m, unsigned int n, uint64_t entry, struct err *err)
{
	int rc;

	m->vcpus = calloc(n, sizeof(*m->vcpus));
	m->saved = calloc(n, sizeof(*m->saved));
	if (!m->vcpus || !m->saved)
		return err_set(err, ENOMEM, "vCPUs");
	for (unsigned int i = 0; i < n; i++) {
		rc = vcpu_create(&m->vcpus[i], m, i, err);
		if (rc < 0)
			return rc;
		m->nvcpus++;
		rc = cpuid_set(&m->cpuid, m->vcpus[i].fd, i, n, err);
		if (rc < 0)
			return rc;
	}
	rc = msr_list_init(&m->msrs, m->kvm.kvm_fd, m->vcpus[0].fd, err);
	return rc < 0 ? rc : regs_init_boot(m->vcpus[0].fd, entry, LINUX_ZERO_PAGE, err);
}

static int machine_check(const struct machine *m, const struct machine_config *cfg, struct err *err)
{
	if (cfg->mem_mib < MACHINE_MIN_MIB || cfg->mem_mib > MACHINE_MAX_MIB || cfg->mem_mib % 2)
		return err_text(err, EINVAL, "%u MiB of memory: allowed are even numbers, %u to %u",
				cfg->mem_mib, MACHINE_MIN_MIB, MACHINE_MAX_MIB);
	if (cfg->vcpus == 0 || cfg->vcpus > MACHINE_MAX_VCPUS)
		return err_text(err, EINVAL, "%u vCPUs: allowed are 1 to %u", cfg->vcpus,
				MACHINE_MAX_VCPUS);
	if ((int)cfg->vcpus > m->kvm.max_vcpus)
		return err_text(err, EINVAL, "%u vCPUs: this host allows %d", cfg->vcpus,
				m->kvm.max_vcpus);
	if (cfg->disk_mib < MACHINE_DISK_MIN_MIB || cfg->disk_mib > MACHINE_DISK_MAX_MIB)
		return err_text(err, EINVAL, "a disk of %u MiB: allowed are %u to %u MiB",
				cfg->disk_mib, MACHINE_DISK_MIN_MIB, MACHINE_DISK_MAX_MIB);
	return 0;
}

static int machine_load_kernel(struct machine *m, const struct machine_config *cfg, uint64_t *entry,
			       struct err *err)
{
	char cmdline[LINUX_CMDLINE_MAX];
	struct linux_boot boot = {.kernel_fd = cfg->fds[CTL_BOOT_KERNEL],
				  .initrd_fd = cfg->fds[CTL_BOOT_INITRD],
				  .cmdline = cmdline,
				  .root = &m->root};
	int n = snprintf(cmdline, sizeof(cmdline), "%s %s %s", MACHINE_CMDLINE,
			 cpuid_is_tcg() ? MACHINE_CMDLINE_TCG : "", cfg->cmdline),
	    rc;

	if (n < 0 || (size_t)n >= sizeof(cmdline))
		return err_text(err, E2BIG, "the kernel command line is too long");
	rc = linux_load(&m->ram, &boot, entry, err);
	if (rc == 0)
		rc = acpi_build(&m->ram, cfg->vcpus, MACHINE_DEVICES, err);
	if (rc == 0)
		rc = regs_write_tables(&m->ram, err);
	return rc;
}

static int machine_init_devices(struct machine *m, const struct machine_config *cfg,
				struct err *err)
{
	const struct virtio_host host = {.raise_irq = machine_raise_irq,
					 .arg = &m->irqs[MACHINE_DEV_VSOCK]};
	const struct vsock_events events = {.connected = machine_on_connected,
					    .refused = machine_on_refused,
					    .closed = machine_on_closed,
					    .asked = machine_on_asked,
					    .arg = m};
	const struct layer_fds top = {.rw = cfg->fds[CTL_BOOT_DISK_RW],
				      .ro = cfg->fds[CTL_BOOT_DISK_RO]};
	int rc;

	ioapic_init(&m->ioapic, machine_deliver_msi, m);
	for (unsigned int i = 0; i < MACHINE_DEVICES; i++)
		m->irqs[i] = (struct machine_irq){.machine = m, .gsi = VM_MMIO_GSI + i};
	rc = console_init(&m->console, cfg->fds[CTL_BOOT_CONSOLE], err);
	if (rc < 0)
		return rc;
	rc = vsock_init(&m->vsock, &m->ram, &host, &events);
	if (rc < 0)
		return err_set(err, -rc, "vsock device");
	rc = machine_watch_vsock(m, err);
	if (rc < 0)
		return rc;
	m->devices[MACHINE_DEV_VSOCK] = &m->vsock.dev;
	return machine_disk_init(m, cfg->disk_mib, top, err);
}

int machine_boot(struct machine *m, const struct machine_config *cfg, struct err *err)
{
	uint64_t entry = 0;
	int rc = kvm_vm_init(&m->kvm, cfg->fds[CTL_BOOT_KVM], err);

	if (rc == 0)
		rc = machine_check(m, cfg, err);
	if (rc == 0)
		rc = gmem_init(&m->ram, (uint64_t)cfg->mem_mib << 20, err);
	if (rc == 0)
		rc = rom_init(&m->root, cfg->fds[CTL_BOOT_ROOT], &m->ram, err);
	if (rc == 0)
		rc = kvm_vm_create(&m->kvm, &m->ram, &m->root, false, err);
	if (rc == 0)
		rc = cpuid_init(&m->cpuid, m->kvm.kvm_fd, err);
	if (rc == 0)
		rc = machine_init_handover(m, err);
	if (rc == 0)
		rc = machine_init_devices(m, cfg, err);
	if (rc == 0)
		rc = machine_load_kernel(m, cfg, &entry, err);
	if (rc == 0)
		rc = machine_init_vcpus(m, cfg->vcpus, entry, err);
	for (unsigned int i = 0; rc == 0 && i < m->nvcpus; i++)
		rc = vcpu_start(&m->vcpus[i], err);
	return rc;
}

void machine_connect(struct machine *m, uint32_t port, int fd, uint32_t cookie)
{
	int rc = -ESHUTDOWN;

	if (m->paused) {
		close_fd(&fd);
	} else {
		device_lock_loop(&m->lock);
		rc = vsock_connect(&m->vsock, port, fd, cookie);
		device_unlock(&m->lock);
	}
	if (rc < 0)
		m->events.refused(m->events.arg, cookie, -rc);
}

void machine_set_egress(struct machine *m, bool on)
{
	device_lock_loop(&m->lock);
	vsock_set_egress(&m->vsock, on && !m->paused);
	device_unlock(&m->lock);
}

void machine_accept(struct machine *m, uint32_t id, int fd)
{
	int rc;

	device_lock_loop(&m->lock);
	rc = vsock_accept(&m->vsock, id, fd);
	device_unlock(&m->lock);
	if (rc < 0)
		return; /* the host sees it on its end of the stream */
}

void machine_reject(struct machine *m, uint32_t id)
{
	device_lock_loop(&m->lock);
	vsock_reject(&m->vsock, id);
	device_unlock(&m->lock);
}

void machine_map(struct machine *m, enum ctl_hotset set)
{
	if (m->kvm.can_map)
		atomic_fetch_or_explicit(&m->to_map, 1u << set, memory_order_relaxed);
}

void machine_warm(struct machine *m, enum ctl_hotset set)
{
	hotsets_populate(&m->hot, &m->ram, set);
	machine_map(m, set);
	if (m->kvm.can_map && !m->paused && !m->leaf)
		vcpu_kick(&m->vcpus[0]);
}

void machine_stats(struct machine *m, uint64_t value[CTL_STAT_COUNT])
{
	int64_t disk_bytes;

	device_lock_loop(&m->lock);
	value[CTL_STAT_EXITS] = 0;
	for (unsigned int i = 0; i < m->nvcpus; i++)
		value[CTL_STAT_EXITS] +=
			atomic_load_explicit(&m->vcpus[i].exits, memory_order_relaxed);
	value[CTL_STAT_NOTIFIES] = value[CTL_STAT_GUEST_FAULTS] = 0;
	for (unsigned int i = 0; i < MACHINE_DEVICES; i++) {
		value[CTL_STAT_NOTIFIES] += m->devices[i]->notifies;
		value[CTL_STAT_GUEST_FAULTS] += m->devices[i]->faults;
	}
	value[CTL_STAT_IRQS] = m->irqs_raised;
	value[CTL_STAT_STREAMS] = vsock_streams(&m->vsock);
	value[CTL_STAT_ROM_WRITES] = m->rom_writes;
	disk_bytes = layers_top_bytes(&m->disk.layers);
	value[CTL_STAT_DISK_BYTES] = disk_bytes < 0 ? 0 : (uint64_t)disk_bytes;
	value[CTL_STAT_DISK_LAYERS] = m->disk.layers.count;
	value[CTL_STAT_DISK_ERRORS] = m->disk.failures;
	device_unlock(&m->lock);
}
