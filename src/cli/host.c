/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads /proc and tries /dev/kvm. A processor flag alone is not enough (KVM
 * may be locked or absent), and a KVM that opens is not enough either (some
 * providers run only guest kernels that were made for them): hardware mode
 * needs the flag, the device and a guest that ran.
 */
#include "cli/host.h"

#include "cli/kvmprobe.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The first "flags" line decides; all processors of a machine have the same. */
static void read_cpu_flags(struct host_facts *f)
{
	_cleanup_free char *text = NULL;
	char *line, *end, *save = NULL;

	if (io_read_file("/proc/cpuinfo", 16 << 20, &text, NULL) < 0)
		return;
	line = strstr(text, "\nflags");
	if (!line)
		return;
	end = strchr(line + 1, '\n');
	if (end)
		*end = '\0';
	for (char *w = strtok_r(line, " \t:\n", &save); w; w = strtok_r(NULL, " \t:\n", &save)) {
		f->cpu_vmx |= strcmp(w, "vmx") == 0;
		f->cpu_svm |= strcmp(w, "svm") == 0;
	}
}

static uint64_t meminfo_mib(const char *text, const char *key)
{
	const char *at = strstr(text, key);

	return at ? strtoull(at + strlen(key), NULL, 10) / 1024 : 0;
}

void host_read_memory(struct host_facts *f)
{
	_cleanup_free char *text = NULL;

	*f = (struct host_facts){.kvm_errno = ENODEV, .probe_rc = -ENODEV, .probe = "not tried"};
	if (io_read_file("/proc/meminfo", 1 << 20, &text, NULL) < 0)
		return;
	f->mem_total_mib = meminfo_mib(text, "MemTotal:");
	f->mem_available_mib = meminfo_mib(text, "MemAvailable:");
}

void host_read_facts(struct host_facts *f, bool always_probe)
{
	_cleanup_fd int kvm = -1;

	host_read_memory(f);
	read_cpu_flags(f);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	f->kvm_errno = kvm < 0 ? errno : 0;
	if (kvm >= 0 && (always_probe || f->cpu_vmx || f->cpu_svm))
		f->probe_rc = kvmprobe_run(HOST_PROBE_MS, f->probe, sizeof(f->probe));
}

bool host_has_hardware(const struct host_facts *f)
{
	return (f->cpu_vmx || f->cpu_svm) && f->kvm_errno == 0 && f->probe_rc == 0;
}

void host_reason(const struct host_facts *f, char *text, size_t size)
{
	if (!f->cpu_vmx && !f->cpu_svm)
		snprintf(text, size, "the processor shows neither vmx nor svm");
	else if (f->kvm_errno == ENOENT)
		snprintf(text, size, "there is no /dev/kvm");
	else if (f->kvm_errno)
		snprintf(text, size, "/dev/kvm cannot be opened (%s)", strerror(f->kvm_errno));
	else
		snprintf(text, size, "KVM does not run a guest here (%s)", f->probe);
}

int host_parse_mode(const char *text, enum host_mode *mode, struct err *err)
{
	static const char *const names[] = {
		[HOST_AUTO] = "auto", [HOST_HARDWARE] = "hardware", [HOST_EMULATED] = "emulated"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(text, names[i]) == 0) {
			*mode = (enum host_mode)i;
			return 0;
		}
	}
	return err_text(err, EINVAL, "--mode is auto, hardware or emulated, not '%s'", text);
}

int host_choose(const struct host_facts *f, enum host_mode wanted, enum host_mode *mode,
		struct err *err)
{
	char reason[256];

	*mode = wanted;
	if (wanted == HOST_AUTO)
		*mode = host_has_hardware(f) ? HOST_HARDWARE : HOST_EMULATED;
	if (*mode == HOST_HARDWARE && !host_has_hardware(f)) {
		host_reason(f, reason, sizeof(reason));
		return err_text(err, ENODEV,
				"--mode hardware is not possible because %s; "
				"`podflare doctor` says what to do",
				reason);
	}
	return 0;
}
