/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The KVM side of one virtual machine: the VM descriptor, its memory slots,
 * the split interrupt controller. Nothing here is on the kernel's I/O bus (no
 * in-kernel IOAPIC, PIT, ioeventfd or irqfd): such objects make the end of a VM
 * cost a grace period of 14-24 ms.
 *
 * Thread: created and freed by the loop thread; kvm_vm_signal_msi() by any
 * thread that holds the device lock.
 * fork: a KVM VM belongs to the mm that made it. The child closes both
 * descriptors and makes its own VM on the inherited memory.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"
#include "vmm/core/gmem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where things are in guest-physical memory, beside RAM (see gmem.h). */
#define VM_MMIO_BASE   0xd0000000ull /* virtio-mmio windows, VM_MMIO_STRIDE each */
#define VM_MMIO_STRIDE 0x1000ull
#define VM_MMIO_GSI    16u /* interrupt line of the first window; the next has the next */
#define VM_IOAPIC_BASE 0xfec00000ull
#define VM_LAPIC_BASE  0xfee00000ull
#define VM_TSS_ADDR    0xfffbd000ull /* three pages KVM wants on Intel */
#define VM_IDENT_ADDR  0xfffbc000ull

/* Memory slots; the second one is there only when RAM reaches above the gap. */
enum { VM_SLOT_LOW, VM_SLOT_HIGH, VM_SLOT_ROM };

/*
 * KVM_PRE_FAULT_MEMORY, its structure and capability, of Linux 6.11: newer than the headers of
 * Debian 12, and under names of their own, as those of later headers are the kernel's.
 */
struct vm_pre_fault {
	uint64_t gpa, size, flags, padding[5];
};
#define VM_PRE_FAULT_MEMORY     _IOWR(KVMIO, 0xd5, struct vm_pre_fault)
#define VM_CAP_PRE_FAULT_MEMORY 236

struct rom;

struct kvm_vm {
	int kvm_fd;    /* /dev/kvm, owned */
	int fd;        /* the VM */
	int run_size;  /* bytes of a vCPU's kvm_run mapping */
	int max_vcpus; /* what this host allows */
	bool pmu_goes; /* its KVM can take a guest's performance counters away */
	bool can_map;  /* its KVM can map what a guest has not touched: kvm_vcpu_map() */
};

/* Refuses with the name of the first capability that is missing. Takes over kvm_fd on success. */
__must_check int kvm_vm_init(struct kvm_vm *vm, int kvm_fd, struct err *err);
void kvm_vm_free(struct kvm_vm *vm);

/*
 * Creates the VM: the filter of MSRs, memory slots (an in-kernel object before
 * them costs milliseconds), then the split interrupt controller; no performance
 * counters, where that can be had. rom may be NULL.
 * log: what the guest writes to RAM can be asked for (and costs a fault for each page).
 */
__must_check int kvm_vm_create(struct kvm_vm *vm, const struct gmem *ram, const struct rom *rom,
			       bool log, struct err *err);
/* One bit for each page of the slot that the guest has written to since the last call. */
__must_check int kvm_vm_dirty_log(const struct kvm_vm *vm, uint32_t slot, uint64_t *bits);

/*
 * Has the guest's memory mapped for a vCPU, whose thread calls this, as if it had read all of it,
 * in one go: 0 when all was mapped, or a part before a signal came or KVM could not go on; or
 * -errno. The host's own mapping of it decides whether it is writable at once. [gpa, gpa + size) is
 * whole pages of one slot. Linux 6.11 to 6.14 may lack a mend of KVM's (of 6.15: obsolete roots in
 * kvm_mmu_reload()) without which it tries for ever, until a signal comes, after something made KVM
 * drop all its tables in between: no guest can, and the VMM moves no slot.
 */
__must_check int kvm_vcpu_map(int vcpu_fd, uint64_t gpa, uint64_t size);

/* Delivers one message-signalled interrupt: 0 or -errno. */
int kvm_vm_signal_msi(const struct kvm_vm *vm, uint32_t address, uint32_t data);

/* ioctl() that retries EINTR: its result, or -errno. */
int kvm_ioctl(int fd, unsigned long req, const void *arg);
