/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Save and load of vCPU state as a table of ioctls, and of the MSRs, whose
 * list comes from KVM: a list of our own would miss what a KVM flavour adds.
 */
#include "vmm/x86/state.h"
#include "vmm/core/vm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>

#define MSR_TSC          0x10
#define MSR_OLD_WALL     0x11 /* kvmclock under its first numbers */
#define MSR_OLD_TIME     0x12
#define MSR_VMX_FIRST    0x480
#define MSR_VMX_LAST     0x491
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_HYPERV_FIRST 0x40000000
#define MSR_HYPERV_LAST  0x400001ff

/*
 * The order is KVM's: MP_STATE may accept a pending INIT and change the rest,
 * so it is read first; events come last because other reads may change them.
 * On load SREGS has the APIC base and precedes the LAPIC; the LAPIC's timer
 * mode precedes the deadline MSR; REGS clears pending exceptions and precedes
 * events.
 */
#define STEP(get, set, field)                                      \
	{                                                          \
		get, set, offsetof(struct vcpu_state, field), #get \
	}
static const struct step {
	unsigned long get, set;
	size_t offset;
	const char *name;
} before_msrs[] = {
	STEP(KVM_GET_MP_STATE, KVM_SET_MP_STATE, mp),
	STEP(KVM_GET_REGS, KVM_SET_REGS, regs),
	STEP(KVM_GET_SREGS, KVM_SET_SREGS, sregs),
	STEP(KVM_GET_XSAVE, KVM_SET_XSAVE, xsave),
	STEP(KVM_GET_XCRS, KVM_SET_XCRS, xcrs),
	STEP(KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, debug),
	STEP(KVM_GET_LAPIC, KVM_SET_LAPIC, lapic),
};

/* struct kvm_msrs with room for the largest set. */
struct msr_wire {
	struct kvm_msrs h;
	struct kvm_msr_entry e[STATE_MAX_MSRS];
};

struct msr_index_wire {
	struct kvm_msr_list h;
	uint32_t index[STATE_MAX_MSRS];
};

static int msr_wanted(uint32_t index)
{
	/*
	 * The old kvmclock numbers are aliases: writing them after the new ones turns the master
	 * clock off. The TSC travels as an offset. The deadline is added at the end of the list.
	 */
	if (index == MSR_OLD_WALL || index == MSR_OLD_TIME || index == MSR_TSC ||
	    index == MSR_TSC_DEADLINE)
		return 0;
	return !(index >= MSR_HYPERV_FIRST && index <= MSR_HYPERV_LAST) &&
	       !(index >= MSR_VMX_FIRST && index <= MSR_VMX_LAST);
}

static int msr_readable(int vcpu_fd, uint32_t index)
{
	struct msr_wire w = {.h.nmsrs = 1, .e = {{.index = index}}};

	return kvm_ioctl(vcpu_fd, KVM_GET_MSRS, &w) == 1;
}

int msr_list_init(struct msr_list *l, int kvm_fd, int vcpu_fd, struct err *err)
{
	struct msr_index_wire w = {.h.nmsrs = STATE_MAX_MSRS};
	int rc = kvm_ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &w);

	l->count = 0;
	if (rc < 0)
		return err_set(err, -rc, "KVM_GET_MSR_INDEX_LIST (%u)", w.h.nmsrs);
	for (uint32_t i = 0; i < w.h.nmsrs; i++)
		if (msr_wanted(w.index[i]) && l->count < STATE_MAX_MSRS - 1 &&
		    msr_readable(vcpu_fd, w.index[i]))
			l->index[l->count++] = w.index[i];
	if (!msr_readable(vcpu_fd, MSR_TSC_DEADLINE))
		return err_text(err, ENOTSUP, "this host's KVM does not show the TSC deadline");
	l->index[l->count++] = MSR_TSC_DEADLINE;
	return 0;
}

static int tsc_offset(int vcpu_fd, unsigned long req, uint64_t *value)
{
	struct kvm_device_attr a = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uint64_t)(uintptr_t)value,
	};

	return kvm_ioctl(vcpu_fd, req, &a);
}

static int msrs_save(struct vcpu_state *s, int fd, const struct msr_list *l, struct err *err)
{
	struct msr_wire w = {.h.nmsrs = l->count};
	int rc;

	for (uint32_t i = 0; i < l->count; i++)
		w.e[i].index = l->index[i];
	rc = kvm_ioctl(fd, KVM_GET_MSRS, &w);
	if (rc < 0)
		return err_set(err, -rc, "KVM_GET_MSRS");
	if ((uint32_t)rc != l->count)
		return err_text(err, EIO, "MSR %#x cannot be read", l->index[rc]);
	s->nmsrs = l->count;
	memcpy(s->msrs, w.e, l->count * sizeof(w.e[0]));
	return 0;
}

static int msrs_load(const struct vcpu_state *s, int fd, struct err *err)
{
	struct msr_wire w = {.h.nmsrs = s->nmsrs};
	int rc;

	memcpy(w.e, s->msrs, s->nmsrs * sizeof(w.e[0]));
	rc = kvm_ioctl(fd, KVM_SET_MSRS, &w);
	if (rc < 0)
		return err_set(err, -rc, "KVM_SET_MSRS");
	/* Same host, same CPUID: a refused MSR would be a hole in the copy. */
	if ((uint32_t)rc != s->nmsrs)
		return err_text(err, EIO, "MSR %#x = %#llx is refused", s->msrs[rc].index,
				(unsigned long long)s->msrs[rc].data);
	return 0;
}

int vcpu_state_save(struct vcpu_state *s, int vcpu_fd, const struct msr_list *msrs, struct err *err)
{
	int rc;

	for (size_t i = 0; i < ARRAY_SIZE(before_msrs); i++) {
		rc = kvm_ioctl(vcpu_fd, before_msrs[i].get, (char *)s + before_msrs[i].offset);
		if (rc < 0)
			return err_set(err, -rc, "%s", before_msrs[i].name);
	}
	rc = tsc_offset(vcpu_fd, KVM_GET_DEVICE_ATTR, &s->tsc_offset);
	if (rc < 0)
		return err_set(err, -rc, "cannot read the TSC offset");
	rc = msrs_save(s, vcpu_fd, msrs, err);
	if (rc < 0)
		return rc;
	rc = kvm_ioctl(vcpu_fd, KVM_GET_VCPU_EVENTS, &s->events);
	return rc < 0 ? err_set(err, -rc, "KVM_GET_VCPU_EVENTS") : 0;
}

int vcpu_state_load(const struct vcpu_state *s, int vcpu_fd, uint64_t tsc_shift, struct err *err)
{
	uint64_t offset = s->tsc_offset + tsc_shift;
	int rc;

	rc = tsc_offset(vcpu_fd, KVM_SET_DEVICE_ATTR, &offset);
	if (rc < 0)
		return err_set(err, -rc, "cannot set the TSC offset");
	for (size_t i = 0; i < ARRAY_SIZE(before_msrs); i++) {
		rc = kvm_ioctl(vcpu_fd, before_msrs[i].set,
			       (const char *)s + before_msrs[i].offset);
		if (rc < 0)
			return err_set(err, -rc, "setting what %s gave", before_msrs[i].name);
	}
	rc = msrs_load(s, vcpu_fd, err);
	if (rc < 0)
		return rc;
	rc = kvm_ioctl(vcpu_fd, KVM_SET_VCPU_EVENTS, &s->events);
	return rc < 0 ? err_set(err, -rc, "KVM_SET_VCPU_EVENTS") : 0;
}

int clock_state_save(struct clock_state *c, int vm_fd, struct err *err)
{
	int rc = kvm_ioctl(vm_fd, KVM_GET_CLOCK, &c->clock);

	c->host_tsc = __rdtsc();
	return rc < 0 ? err_set(err, -rc, "KVM_GET_CLOCK") : 0;
}

int clock_state_load(const struct clock_state *c, int vm_fd, enum time_policy time,
		     uint64_t *tsc_shift, struct err *err)
{
	struct kvm_clock_data d = {.clock = c->clock.clock};
	int rc;

	/* Time that stood still: the guest's TSC goes on from its value at the save. */
	*tsc_shift = time == TIME_STOOD ? c->host_tsc - __rdtsc() : 0;
	if (time == TIME_CONTINUES && (c->clock.flags & KVM_CLOCK_REALTIME)) {
		d.flags = KVM_CLOCK_REALTIME;
		d.realtime = c->clock.realtime;
	}
	rc = kvm_ioctl(vm_fd, KVM_SET_CLOCK, &d);
	return rc < 0 ? err_set(err, -rc, "KVM_SET_CLOCK") : 0;
}
