/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole virtual machine: memory, processors, interrupt controller and the
 * explicit list of devices. There is no network device, and none can be added
 * by configuration: the list below is all there is.
 *
 * Lock: `lock` (the device lock) guards every device, the interrupt controller
 * and the end of the machine. It is taken by vCPU threads around an exit and by
 * the loop thread around socket events, and never held while waiting but for the
 * host's storage. vCPUs let a loop thread that waits for it go first (device_lock.h).
 *
 * Thread: machine_boot() on the loop thread. fork: each member's header says
 * what becomes of it; `handover` and `vcpus` are made anew in the child.
 */
#pragma once

#include "lib/loop.h"
#include "proto/control.h"
#include "vmm/core/device_lock.h"
#include "vmm/core/exit.h"
#include "vmm/core/gmem.h"
#include "vmm/core/hotset.h"
#include "vmm/core/machine_disk.h"
#include "vmm/core/rom.h"
#include "vmm/core/vcpu.h"
#include "vmm/core/vm.h"
#include "vmm/dev/console.h"
#include "vmm/irq/ioapic.h"
#include "vmm/virtio/mmio.h"
#include "vmm/virtio/vsock.h"
#include "vmm/x86/cpuid.h"
#include "vmm/x86/state.h"

#include <pthread.h>

/* In the order of their windows and interrupt lines. */
enum { MACHINE_DEV_VSOCK, MACHINE_DEV_BLK, MACHINE_DEVICES };

#define MACHINE_MAX_VCPUS  32u
#define MACHINE_MIN_MIB    128u
#define MACHINE_MAX_MIB    65536u
#define MACHINE_MAX_STATUS 16u /* status writes passed on in the life of a VM */
/* News waiting for the loop thread: two for each stream (opened, refused), and the reports. */
#define MACHINE_MAX_NEWS (2u * VSOCK_CONNS + MACHINE_MAX_STATUS)

/* What the machine tells its owner; called on the loop thread. */
struct machine_events {
	void (*status)(void *arg, uint32_t code);
	void (*connected)(void *arg, uint32_t cookie);
	void (*refused)(void *arg, uint32_t cookie, int errnum);
	/* The guest opens a connection: machine_accept() or machine_reject() is to follow.
	 * Negative: the question cannot be passed on, and the guest is refused. */
	int (*asked)(void *arg, uint32_t id);
	/* The host failed requests of the disk: the last one's errno, and how many by now. */
	void (*disk_failed)(void *arg, int errnum, uint64_t failures);
	void (*ended)(void *arg, const struct exit_reason *why);
	void *arg;
};

struct jail;

struct machine_config {
	uint32_t mem_mib;
	uint32_t vcpus;
	uint32_t disk_mib;
	const char *cmdline; /* appended to the machine's own */
	/* By enum ctl_boot_fd: KVM and the disk's are taken over, the rest stay the caller's. */
	int fds[CTL_BOOT_FDS];
};

/* Line of one device into the IOAPIC. */
struct machine_irq {
	struct machine *machine;
	unsigned int gsi;
};

/* Something a vCPU thread found out and the loop thread passes on. */
struct machine_news {
	enum { NEWS_STATUS, NEWS_CONNECTED, NEWS_REFUSED } kind;
	uint32_t id; /* cookie, or status code */
	int errnum;  /* of NEWS_REFUSED */
};

struct machine {
	struct loop *loop;
	struct machine_events events;
	struct device_lock lock;
	struct gmem ram;
	struct rom root;
	struct hotsets hot; /* of a template; inherited */
	struct kvm_vm kvm;
	struct cpuid_table cpuid;
	struct ioapic ioapic;
	struct console console;
	struct vsock vsock;
	struct machine_disk disk;
	struct virtio_dev *devices[MACHINE_DEVICES];
	struct machine_irq irqs[MACHINE_DEVICES];
	uint32_t pci_address;
	uint64_t rom_writes;
	uint64_t irqs_raised;

	/* vCPU threads -> loop thread, under the lock; the eventfd only wakes the loop. */
	int handover_fd;
	struct loop_src handover;
	struct loop_src vsock_src;
	struct machine_news news[MACHINE_MAX_NEWS];
	unsigned int nnews, nstatus;
	int ended;
	struct exit_reason end_reason;

	/* vcpu_run(); tests and benches of the machine without a guest put something else here. */
	int (*run)(struct vcpu *v);
	const struct jail *jail; /* of threads; NULL: none, in tests and benches */
	struct vcpu_park park;
	/* Hot sets that the first vCPU is to map before it goes on: bits by enum ctl_hotset. */
	_Atomic uint32_t to_map;
	struct vcpu *vcpus;
	unsigned int nvcpus;

	/* What a fork carries over: filled while the vCPUs are parked. */
	struct msr_list msrs;
	struct vcpu_state *saved; /* one a vCPU */
	struct clock_state saved_clock;
	bool paused;    /* stays parked: a template */
	bool rehearsal; /* a child whose writes are logged */
	bool leaf;      /* a child that is neither forked nor paused (vmm/jail/jail.h) */
	/* Of a leaf: its threads wait here for each other, the loop's with the devices resumed. */
	pthread_barrier_t gate;
	_Atomic int gate_errnum; /* one of a vCPU could not enter its jail; 0: all have */
	uint64_t forked_ns;      /* when fork(2) was called last */
};

void machine_init(struct machine *m, struct loop *loop, const struct machine_events *events);

/* Builds the machine and starts its processors. On failure the process is expected to end. */
__must_check int machine_boot(struct machine *m, const struct machine_config *cfg, struct err *err);

/*
 * Opens a stream to a guest port; fd is taken over. Answer by events.connected or .refused; a
 * paused machine refuses with ESHUTDOWN.
 */
void machine_connect(struct machine *m, uint32_t port, int fd, uint32_t cookie);

/* Whether the guest may open connections (vsock_set_egress()). A paused machine stays as it is:
 * off. */
void machine_set_egress(struct machine *m, bool on);

/* Answers to events.asked; fd is taken over. One that nobody waits for any more is dropped. */
void machine_accept(struct machine *m, uint32_t id, int fd);
void machine_reject(struct machine *m, uint32_t id);

/*
 * Makes the pages of a set ready before the guest needs them (hotset.h). machine_map() is the
 * second half, mapping, of pages that are the process's own already; it takes place when the first
 * vCPU enters the guest next. A leaf's is not made to: it does so after its next exit.
 */
void machine_warm(struct machine *m, enum ctl_hotset set);
void machine_map(struct machine *m, enum ctl_hotset set);

void machine_stats(struct machine *m, uint64_t value[CTL_STAT_COUNT]);

/* Parts of booting that a forked child does again (fork/fork.c). */
__must_check int machine_init_handover(struct machine *m, struct err *err);
__must_check int machine_watch_vsock(struct machine *m, struct err *err);

/* For the devices, with the lock held: makes the loop look at them; an edge on a device's line. */
void machine_wake_loop(struct machine *m);
void machine_raise_irq(void *irq);

/* Called by vCPU threads. Status: with the lock held. End: without; the first reason counts. */
void machine_report_status(struct machine *m, uint32_t code);
void machine_end(struct machine *m, const struct exit_reason *why);
