/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exit dispatch. Ports and windows are looked up in tables; an access to
 * nothing reads all ones and is otherwise ignored, as on a real bus. Accesses
 * to the read-only root image are ignored, too: KVM hands over one store at a
 * time, so a guest that tries hurts only itself.
 */
#include "vmm/core/exit.h"
#include "vmm/boot/acpi.h"
#include "vmm/core/machine.h"
#include "vmm/core/vcpu.h"

#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define PCI_ADDRESS_PORT 0xcf8

void exit_reason_set(struct exit_reason *r, uint32_t code, const char *fmt, ...)
{
	va_list ap;

	r->code = code;
	va_start(ap, fmt);
	vsnprintf(r->text, sizeof(r->text), fmt, ap);
	va_end(ap);
}

/* One access of one to four bytes to a port; val in and out. Returns 1 when the machine ends. */
typedef int port_fn(struct machine *m, uint16_t port, int is_write, unsigned int size,
		    uint32_t *val, struct exit_reason *why);

static int port_console(struct machine *m, uint16_t port, int is_write, unsigned int size,
			uint32_t *val, struct exit_reason *why)
{
	unsigned int reg = (unsigned int)port - CONSOLE_PORT_BASE;

	(void)why;
	if (size != 1)
		return 0;
	if (is_write)
		console_write(&m->console, reg, (uint8_t)*val);
	else
		*val = console_read(&m->console, reg);
	return 0;
}

/*
 * Linux inserts e820 persistent memory into its resource tree only after it
 * has found a PCI configuration mechanism. This latch is all it looks for
 * (pci=conf1); reads of the data port give all ones: no device.
 */
static int port_pci_address(struct machine *m, uint16_t port, int is_write, unsigned int size,
			    uint32_t *val, struct exit_reason *why)
{
	(void)port;
	(void)why;
	if (size != 4)
		return 0;
	if (is_write)
		m->pci_address = *val;
	else
		*val = m->pci_address;
	return 0;
}

static int port_status(struct machine *m, uint16_t port, int is_write, unsigned int size,
		       uint32_t *val, struct exit_reason *why)
{
	(void)port;
	(void)why;
	if (is_write && size == 4)
		machine_report_status(m, *val);
	return 0;
}

static int port_sleep(struct machine *m, uint16_t port, int is_write, unsigned int size,
		      uint32_t *val, struct exit_reason *why)
{
	(void)m;
	(void)size;
	if (!is_write) {
		*val = 0;
		return 0;
	}
	if (port != ACPI_SLEEP_CONTROL_PORT || !(*val & ACPI_SLEEP_ENABLE))
		return 0;
	exit_reason_set(why, CTL_EXIT_POWEROFF, "the guest powered itself off");
	return 1;
}

static const struct {
	uint16_t first, count;
	port_fn *fn;
} ports[] = {
	{CONSOLE_PORT_BASE, CONSOLE_PORT_LEN, port_console},
	{PCI_ADDRESS_PORT, 1, port_pci_address},
	{GUEST_STATUS_PORT, 1, port_status},
	{ACPI_SLEEP_CONTROL_PORT, 2, port_sleep},
};

static int port_access(struct machine *m, uint16_t port, int is_write, unsigned int size,
		       uint32_t *val, struct exit_reason *why)
{
	for (size_t i = 0; i < ARRAY_SIZE(ports); i++)
		if (port >= ports[i].first && port - ports[i].first < ports[i].count)
			return ports[i].fn(m, port, is_write, size, val, why);
	return 0;
}

static int exit_io(struct machine *m, struct kvm_run *run, struct exit_reason *why)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	unsigned int size = run->io.size;
	int is_write = run->io.direction == KVM_EXIT_IO_OUT, end = 0;

	/* count > 1: a string instruction; KVM bounds it by the page behind kvm_run. */
	for (uint32_t i = 0; i < run->io.count && !end; i++, data += size) {
		uint32_t val = 0xffffffff;

		if (is_write) {
			val = 0;
			memcpy(&val, data, size);
		}
		end = port_access(m, run->io.port, is_write, size, &val, why);
		if (!is_write)
			memcpy(data, &val, size);
	}
	return end;
}

static void mmio_ioapic(struct machine *m, uint64_t off, struct kvm_run *run)
{
	uint32_t val = 0;

	if (run->mmio.is_write) {
		memcpy(&val, run->mmio.data, run->mmio.len < 4 ? run->mmio.len : 4);
		ioapic_write(&m->ioapic, off, val);
		return;
	}
	val = ioapic_read(&m->ioapic, off);
	memset(run->mmio.data, 0, sizeof(run->mmio.data));
	memcpy(run->mmio.data, &val, sizeof(val));
}

static void exit_mmio(struct machine *m, struct kvm_run *run)
{
	uint64_t gpa = run->mmio.phys_addr, off = gpa - VM_MMIO_BASE;

	if (gpa >= VM_MMIO_BASE && off / VM_MMIO_STRIDE < MACHINE_DEVICES) {
		struct virtio_dev *dev = m->devices[off / VM_MMIO_STRIDE];

		off %= VM_MMIO_STRIDE;
		if (run->mmio.is_write)
			virtio_mmio_write(dev, off, run->mmio.data, run->mmio.len);
		else
			virtio_mmio_read(dev, off, run->mmio.data, run->mmio.len);
		return;
	}
	if (gpa >= VM_IOAPIC_BASE && gpa - VM_IOAPIC_BASE < IOAPIC_MMIO_LEN) {
		mmio_ioapic(m, gpa - VM_IOAPIC_BASE, run);
		return;
	}
	if (!run->mmio.is_write)
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	else if (gpa >= m->root.gpa && gpa - m->root.gpa < m->root.size)
		m->rom_writes++;
}

int exit_handle(struct machine *m, struct vcpu *v, struct exit_reason *why)
{
	struct kvm_run *run = v->run;
	int end = 0;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		device_lock_vcpu(&m->lock);
		end = exit_io(m, run, why);
		device_unlock(&m->lock);
		return end;
	case KVM_EXIT_MMIO:
		device_lock_vcpu(&m->lock);
		exit_mmio(m, run);
		device_unlock(&m->lock);
		return 0;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_IOAPIC_EOI:
		return 0;
	case KVM_EXIT_SHUTDOWN:
	case KVM_EXIT_SYSTEM_EVENT:
		exit_reason_set(why, CTL_EXIT_RESET, "the guest rebooted or its kernel crashed");
		return 1;
	case KVM_EXIT_FAIL_ENTRY:
		exit_reason_set(why, CTL_EXIT_ERROR,
				"the processor refused to enter the guest: %#llx",
				(unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		return 1;
	case KVM_EXIT_INTERNAL_ERROR:
		exit_reason_set(why, CTL_EXIT_ERROR,
				"KVM could not emulate what the guest did (suberror %u)",
				run->internal.suberror);
		return 1;
	default:
		exit_reason_set(why, CTL_EXIT_ERROR, "unexpected exit %u of vCPU %u",
				run->exit_reason, v->id);
		return 1;
	}
}
