/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Creation of the KVM VM object and its memory slots. Order matters: the filter
 * of MSRs first (msr_filter.h), memory slots before anything else, split irqchip
 * and the end of the performance counters before the first vCPU.
 */
#include "vmm/core/vm.h"
#include "vmm/core/rom.h"
#include "vmm/x86/msr_filter.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#define IOAPIC_PINS     24
#define CREATE_ATTEMPTS 5

/* What the VMM relies on; checked once, so that a failure names its reason. */
static const struct {
	int cap;
	const char *name;
} required_caps[] = {
	{KVM_CAP_USER_MEMORY, "USER_MEMORY"},
	{KVM_CAP_SYNC_MMU, "SYNC_MMU"},
	{KVM_CAP_READONLY_MEM, "READONLY_MEM"},
	{KVM_CAP_SET_TSS_ADDR, "SET_TSS_ADDR"},
	{KVM_CAP_SPLIT_IRQCHIP, "SPLIT_IRQCHIP"},
	{KVM_CAP_SIGNAL_MSI, "SIGNAL_MSI"},
	{KVM_CAP_EXT_CPUID, "EXT_CPUID"},
	{KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT"},
	{KVM_CAP_MP_STATE, "MP_STATE"},
	{KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS"},
	{KVM_CAP_XSAVE, "XSAVE"},
	{KVM_CAP_XCRS, "XCRS"},
	{KVM_CAP_ADJUST_CLOCK, "ADJUST_CLOCK"},
	{KVM_CAP_TSC_DEADLINE_TIMER, "TSC_DEADLINE_TIMER"},
	{KVM_CAP_ENFORCE_PV_FEATURE_CPUID, "ENFORCE_PV_FEATURE_CPUID"}, /* Linux 5.10 */
	{KVM_CAP_X86_MSR_FILTER, "X86_MSR_FILTER"},                     /* Linux 5.10 */
};

int kvm_ioctl(int fd, unsigned long req, const void *arg)
{
	int r;

	do
		r = ioctl(fd, req, arg);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r;
}

static int kvm_ioctl_val(int fd, unsigned long req, unsigned long val)
{
	return kvm_ioctl(fd, req, (const void *)(uintptr_t)val);
}

int kvm_vm_init(struct kvm_vm *vm, int kvm_fd, struct err *err)
{
	int version = kvm_ioctl_val(kvm_fd, KVM_GET_API_VERSION, 0), pmu;

	*vm = (struct kvm_vm){.kvm_fd = -1, .fd = -1};
	if (version != KVM_API_VERSION)
		return err_text(err, ENOTSUP, "the descriptor given as /dev/kvm is not KVM (%d)",
				version);
	for (size_t i = 0; i < ARRAY_SIZE(required_caps); i++)
		if (kvm_ioctl_val(kvm_fd, KVM_CHECK_EXTENSION,
				  (unsigned long)required_caps[i].cap) <= 0)
			return err_text(err, ENOTSUP, "this host's KVM lacks KVM_CAP_%s",
					required_caps[i].name);
	vm->run_size = kvm_ioctl_val(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (vm->run_size < (int)sizeof(struct kvm_run))
		return err_text(err, ENOTSUP, "KVM_GET_VCPU_MMAP_SIZE gives %d", vm->run_size);
	vm->max_vcpus = kvm_ioctl_val(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
	pmu = kvm_ioctl_val(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_PMU_CAPABILITY);
	vm->pmu_goes = pmu > 0 && (pmu & KVM_PMU_CAP_DISABLE);
	vm->can_map = kvm_ioctl_val(kvm_fd, KVM_CHECK_EXTENSION, VM_CAP_PRE_FAULT_MEMORY) > 0;
	vm->kvm_fd = kvm_fd;
	return 0;
}

void kvm_vm_free(struct kvm_vm *vm)
{
	close_fd(&vm->fd);
	close_fd(&vm->kvm_fd);
}

struct slots {
	int fd;
	uint32_t next;
};

static int slot_add(struct slots *s, uint64_t gpa, uint64_t size, const void *host, uint32_t flags,
		    struct err *err)
{
	struct kvm_userspace_memory_region r = {
		.slot = s->next++,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uint64_t)(uintptr_t)host,
	};
	int rc;

	if (size == 0)
		return 0;
	rc = kvm_ioctl(s->fd, KVM_SET_USER_MEMORY_REGION, &r);
	if (rc < 0)
		return err_set(err, -rc, "cannot set the memory slot at %#llx (%llu MiB)",
			       (unsigned long long)gpa, (unsigned long long)(size >> 20));
	return 0;
}

/*
 * What CPUID hides of the counters is not gone: KVM gives the four of the K7 to any guest on AMD,
 * and they tell what else the processor does. A KVM that cannot take them away is older than Linux
 * 5.18, or has none to give.
 */
static int vm_without_pmu(const struct kvm_vm *vm, struct err *err)
{
	const struct kvm_enable_cap none = {.cap = KVM_CAP_PMU_CAPABILITY,
					    .args = {KVM_PMU_CAP_DISABLE}};
	int rc = vm->pmu_goes ? kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &none) : 0;

	return rc < 0 ? err_set(err, -rc, "cannot take the performance counters away") : 0;
}

int kvm_vm_create(struct kvm_vm *vm, const struct gmem *ram, const struct rom *rom, bool log,
		  struct err *err)
{
	struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {IOAPIC_PINS}};
	struct slots slots = {0};
	uint64_t ident = VM_IDENT_ADDR, low = gmem_low_size(ram);
	uint32_t flags = log ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	int rc = -EINTR;

	/* KVM_CREATE_VM may give up on a signal; bounded, in case one keeps coming. */
	for (int i = 0; i < CREATE_ATTEMPTS && rc == -EINTR; i++) {
		rc = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
		if (rc < 0)
			rc = -errno;
	}
	if (rc < 0)
		return err_set(err, -rc, "KVM_CREATE_VM");
	vm->fd = rc;
	slots.fd = vm->fd;
	rc = msr_filter_set(vm->fd, err);
	if (rc == 0)
		rc = slot_add(&slots, 0, low, ram->base, flags, err);
	if (rc == 0)
		rc = slot_add(&slots, GMEM_HIGH_START, gmem_high_size(ram), ram->base + low, flags,
			      err);
	if (rc == 0 && rom)
		rc = slot_add(&slots, rom->gpa, rom->size, rom->host, KVM_MEM_READONLY, err);
	if (rc < 0)
		return rc;
	rc = kvm_ioctl_val(vm->fd, KVM_SET_TSS_ADDR, VM_TSS_ADDR);
	if (rc < 0)
		return err_set(err, -rc, "KVM_SET_TSS_ADDR");
	rc = kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &ident);
	if (rc < 0)
		return err_set(err, -rc, "KVM_SET_IDENTITY_MAP_ADDR");
	rc = kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &split);
	if (rc < 0)
		return err_set(err, -rc, "cannot enable the split interrupt controller");
	return vm_without_pmu(vm, err);
}

int kvm_vm_dirty_log(const struct kvm_vm *vm, uint32_t slot, uint64_t *bits)
{
	struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bits};

	return kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log);
}

int kvm_vcpu_map(int vcpu_fd, uint64_t gpa, uint64_t size)
{
	struct vm_pre_fault range = {.gpa = gpa, .size = size};

	return ioctl(vcpu_fd, VM_PRE_FAULT_MEMORY, &range) < 0 ? -errno : 0;
}

int kvm_vm_signal_msi(const struct kvm_vm *vm, uint32_t address, uint32_t data)
{
	struct kvm_msi msi = {.address_lo = address, .data = data};

	return kvm_ioctl(vm->fd, KVM_SIGNAL_MSI, &msi);
}
