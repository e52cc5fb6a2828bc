/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A KVM that agrees to everything, for targets that work with a whole machine: the calls by which
 * the VMM reaches the kernel are played (meson.build: fake_kvm_plays, --wrap). No vCPU runs; those
 * of a machine that is to be parked have parked at once. fork(2) gives a child's number without
 * making one, or, when the target says so, goes on as the child does in the same process.
 *
 * Only what happens between fake_kvm_begin() and fake_kvm_end() is played; the fuzzer's own calls
 * are not.
 */
#pragma once

#include "vmm/core/machine.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fake_kvm {
	bool on;
	bool be_child;  /* the next fork goes on as the child */
	unsigned fail;  /* this call of ioctl() from now on fails; 0: none */
	unsigned msis;  /* interrupts that were delivered */
	unsigned forks; /* that were asked for */
	uint8_t dirty;  /* what the log of written pages consists of */
	int first_fd;   /* what is below was there before */
};

extern struct fake_kvm fake_kvm;

/* Descriptors at and above are the target's own: a child that closes all others spares them. */
#define FAKE_KVM_OWN_FDS 700

void fake_kvm_begin(void);
/* Closes what the machine has left open. */
void fake_kvm_end(void);

/* A sealed file of len bytes; a file of len bytes; an empty layer of a disk. */
int fake_kvm_sealed(size_t len);
int fake_kvm_file(const void *data, size_t len);
void fake_kvm_layer(int *rw, int *ro);
/* A kernel that is as small as the loader takes. Returns its length. */
size_t fake_kvm_elf(uint8_t out[256]);
/* A configuration that boots, with two vCPUs. The descriptors are the caller's. */
struct machine_config fake_kvm_config(void);
/* What a machine holds in memory, whatever has become of it. */
void fake_kvm_drop(struct machine *m);
/* The same descriptor out of the way of a child: the target's own. */
int fake_kvm_own(int fd);
