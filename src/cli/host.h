/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Facts about the machine that decide how podflare runs on it, and the
 * decision itself. Read once, at start; nothing is cached or written.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

enum host_mode { HOST_AUTO, HOST_HARDWARE, HOST_EMULATED };

struct host_facts {
	bool cpu_vmx, cpu_svm;
	int kvm_errno;   /* of opening /dev/kvm for reading and writing; 0 = opened */
	int probe_rc;    /* of kvmprobe_run(); -ENODEV when it was not tried */
	char probe[160]; /* what the probe says */
	uint64_t mem_total_mib, mem_available_mib;
};

#define HOST_PROBE_MS 2000

/* The probe takes up to HOST_PROBE_MS; without a processor flag only when always_probe is set. */
void host_read_facts(struct host_facts *f, bool always_probe);

/* The memory figures alone; the rest says "not tried". */
void host_read_memory(struct host_facts *f);

/* True when guests run on the processor itself. */
bool host_has_hardware(const struct host_facts *f);

/* Why they do not: a clause that fits behind "because". Needs !host_has_hardware(). */
void host_reason(const struct host_facts *f, char *text, size_t size);

/* "auto", "hardware" or "emulated". */
__must_check int host_parse_mode(const char *text, enum host_mode *mode, struct err *err);

/* HOST_HARDWARE or HOST_EMULATED; an error when hardware is demanded and there is none. */
__must_check int host_choose(const struct host_facts *f, enum host_mode wanted,
			     enum host_mode *mode, struct err *err);
