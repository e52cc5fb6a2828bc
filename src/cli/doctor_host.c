/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the doctor looks at on the machine itself: processor and KVM, memory,
 * huge pages, namespaces, Landlock, disk space, the port. Reads only; the one
 * thing it makes is a child in new namespaces that ends at once.
 */
#define _GNU_SOURCE
#include "cli/addr.h"
#include "cli/boxhost.h"
#include "cli/doctor.h"
#include "cli/http_call.h"
#include "lib/io.h"
#include "lib/landlock.h"
#include "lib/spaces.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>

#define DISK_WANTED_MIB  8192
#define CACHE_WANTED_MIB 4096

static void check_flags(struct doctor *d)
{
	bool found = d->facts.cpu_vmx || d->facts.cpu_svm;
	struct finding *f = doctor_add(d, found ? FINDING_OK : FINDING_NOTE, "processor");

	if (found) {
		doctor_found(f, "hardware virtualization (%s)", d->facts.cpu_vmx ? "vmx" : "svm");
		return;
	}
	doctor_found(f, "no hardware virtualization: /proc/cpuinfo shows neither vmx nor svm");
	doctor_advise(f,
		      "switch it on in the firmware of a physical machine (VT-x, AMD-V, SVM), or "
		      "nested virtualization in the settings of a virtual one; without it "
		      "podflare runs in emulated mode");
}

static void check_kvm(struct doctor *d)
{
	int e = d->facts.kvm_errno;
	struct finding *f = doctor_add(d, e ? FINDING_NOTE : FINDING_OK, "kvm");

	if (e == 0) {
		doctor_found(f, "/dev/kvm can be used by this user");
		return;
	}
	doctor_found(f, "/dev/kvm cannot be opened: %s", strerror(e));
	if (!d->facts.cpu_vmx && !d->facts.cpu_svm)
		return; /* it would not help */
	if (e == ENOENT)
		doctor_advise(f, "load the module (modprobe kvm_intel or kvm_amd); a container "
				 "needs --device /dev/kvm");
	else if (e == EACCES || e == EPERM)
		doctor_advise(f, "add this user to the group kvm (usermod -aG kvm USER), then log "
				 "in again");
}

static void check_probe(struct doctor *d)
{
	struct finding *f;

	d->hardware = host_has_hardware(&d->facts);
	if (d->facts.kvm_errno)
		return;
	f = doctor_add(d, d->hardware ? FINDING_OK : FINDING_NOTE, "guest");
	if (d->hardware) {
		doctor_found(f, "a small guest ran on the processor");
		return;
	}
	if (d->facts.probe_rc == 0) {
		doctor_found(f, "a guest of three instructions ran, but without vmx or svm an "
				"ordinary kernel does not");
		return;
	}
	doctor_found(f, "KVM does not run a guest: %s", d->facts.probe);
	if (d->facts.cpu_vmx || d->facts.cpu_svm)
		doctor_advise(f,
			      "look at the kernel's messages (dmesg | grep -i kvm); in a virtual "
			      "machine, nested virtualization may be half switched on");
}

void doctor_check_processor(struct doctor *d)
{
	check_flags(d);
	check_kvm(d);
	check_probe(d);
}

static void check_kernel(struct doctor *d)
{
	unsigned int major = 0, minor = 0;
	struct utsname u;
	struct finding *f;

	if (uname(&u) < 0 || sscanf(u.release, "%u.%u", &major, &minor) != 2)
		return;
	f = doctor_add(d, FINDING_OK, "kernel");
	doctor_found(f, "Linux %s", u.release);
	if (major > 6 || (major == 6 && minor >= 1))
		return;
	f->level = FINDING_FAIL;
	doctor_advise(f, "podflare needs Linux 6.1 or newer");
	d->hardware = d->emulated = false;
}

static void check_memory(struct doctor *d)
{
	uint64_t available = d->facts.mem_available_mib;
	struct finding *f = doctor_add(d, FINDING_OK, "memory");

	doctor_found(f, "%" PRIu64 " of %" PRIu64 " MiB are available", available,
		     d->facts.mem_total_mib);
	if (d->hardware || available >= BOXHOST_MEMORY_MIN)
		return;
	f->level = FINDING_FAIL;
	doctor_advise(f, "emulated mode needs %d MiB: free some or add some", BOXHOST_MEMORY_MIN);
	d->emulated = false;
}

/* The chosen word of a sysfs file like "always [madvise] never". */
static bool read_choice(const char *path, char *out, size_t size)
{
	_cleanup_free char *text = NULL;
	char *open, *close;

	if (io_read_file(path, 4096, &text, NULL) < 0)
		return false;
	open = strchr(text, '[');
	close = open ? strchr(open, ']') : NULL;
	if (!close)
		return false;
	*close = '\0';
	snprintf(out, size, "%s", open + 1);
	return true;
}

static void check_huge_pages(struct doctor *d)
{
	static const struct {
		const char *name, *file, *what;
		const char *good[4];
	} kinds[] = {
		{"huge_pages",
		 "/sys/kernel/mm/transparent_hugepage/enabled",
		 "guest memory",
		 {"always", "madvise"}},
		{"shared_huge_pages",
		 "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
		 "the root image",
		 {"always", "advise", "within_size", "force"}},
	};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct finding *f = doctor_add(d, FINDING_NOTE, kinds[i].name);
		char word[32];

		if (!read_choice(kinds[i].file, word, sizeof(word))) {
			doctor_found(f, "this kernel has no %s", kinds[i].file);
			continue;
		}
		doctor_found(f, "for %s: %s", kinds[i].what, word);
		for (size_t k = 0; k < ARRAY_SIZE(kinds[i].good) && kinds[i].good[k]; k++)
			if (strcmp(word, kinds[i].good[k]) == 0)
				f->level = FINDING_OK;
		if (f->level == FINDING_OK)
			continue;
		if (d->hardware)
			doctor_advise(f, "faster with: echo %s > %s", i == 0 ? "madvise" : "advise",
				      kinds[i].file);
		else
			doctor_advise(f,
				      "does not matter in emulated mode, which has its own "
				      "kernel; with hardware: echo %s > %s",
				      i == 0 ? "madvise" : "advise", kinds[i].file);
	}
}

/*
 * What the daemon tries at its start, which is in vain here. In emulated mode it is the kernel of
 * the emulated host that counts.
 */
static void check_namespaces(struct doctor *d)
{
	const char *text = getenv("PODFLARE_WITHOUT_NAMESPACES");
	int rc = spaces_try();
	struct finding *f = doctor_add(d, rc < 0 ? FINDING_NOTE : FINDING_OK, "namespaces");

	if (rc == 0) {
		doctor_found(f, "a VMM gets namespaces of its own, with an empty root");
		return;
	}
	doctor_found(f, "this user may not make the namespaces of a VMM: %s", strerror(-rc));
	if (!d->hardware) {
		doctor_advise(f, "does not matter in emulated mode, which has its own kernel");
		return;
	}
	doctor_advise(f, "%s; or use --mode emulated", SPACES_ADVICE);
	if (text && strcmp(text, "1") == 0)
		return;
	f->level = FINDING_FAIL;
	d->hardware = false;
}

static void check_landlock(struct doctor *d)
{
	int abi = landlock_abi();
	struct finding *f = doctor_add(d, abi ? FINDING_OK : FINDING_NOTE, "landlock");

	if (abi) {
		doctor_found(f,
			     "VMMs, proxies and QEMU are kept from files by Landlock, too "
			     "(version %d)",
			     abi);
		return;
	}
	doctor_found(f, "this kernel has no Landlock, or it is not turned on");
	if (d->hardware)
		doctor_advise(f, "a second wall behind the system call filter: the word landlock "
				 "in the kernel's option lsm=, or in CONFIG_LSM");
	else
		doctor_advise(f, "in emulated mode it keeps QEMU from this user's files (VMMs have "
				 "a kernel of their own there): the word landlock in the kernel's "
				 "option lsm=, or in CONFIG_LSM");
}

/* Shortens the path to the nearest directory that exists: the state may still have to be made. */
static void existing_parent(char *path)
{
	while (access(path, F_OK) < 0) {
		char *slash = strrchr(path, '/');

		if (!slash || slash == path) {
			path[0] = slash ? '/' : '.';
			path[1] = '\0';
			return;
		}
		*slash = '\0';
	}
}

/* Free space where `path` is or will be; the path is shortened to what exists. */
static void check_space(struct doctor *d, const char *name, char *path, uint64_t wanted_mib,
			const char *what, const char *option)
{
	struct finding *f;
	struct statvfs v;
	uint64_t mib;

	existing_parent(path);
	if (statvfs(path, &v) < 0)
		return;
	mib = (uint64_t)v.f_bavail * v.f_frsize >> 20;
	f = doctor_add(d, mib >= wanted_mib ? FINDING_OK : FINDING_NOTE, name);
	doctor_found(f, "%" PRIu64 " MiB free for %s (%.100s)", mib, what, path);
	if (f->level != FINDING_OK)
		doctor_advise(f, "have %" PRIu64 " MiB, or choose another place with %s",
			      wanted_mib, option);
	if (access(path, W_OK) < 0) {
		f->level = FINDING_FAIL;
		doctor_advise(f, "this user cannot write there: choose a place with %s", option);
	}
}

static void check_disk(struct doctor *d)
{
	static const char *const bases[][2] = {{"PODFLARE_CACHE", ""},
					       {"XDG_CACHE_HOME", "/podflare"},
					       {"HOME", "/.cache/podflare"}};
	char path[PATH_MAX];

	if (!d->state || snprintf(path, sizeof(path), "%s", d->state) >= (int)sizeof(path))
		if (paths_default_state(path, NULL) < 0)
			path[0] = '\0';
	if (path[0])
		check_space(d, "disk", path, DISK_WANTED_MIB,
			    "the state and the disks of sandboxes, which take what they use",
			    "--state DIR");
	for (size_t i = 0; i < ARRAY_SIZE(bases); i++) {
		const char *base = getenv(bases[i][0]);

		if (!base || !*base ||
		    snprintf(path, sizeof(path), "%s%s", base, bases[i][1]) >= (int)sizeof(path))
			continue;
		check_space(d, "cache_disk", path, CACHE_WANTED_MIB, "building images of templates",
			    "PODFLARE_CACHE=DIR");
		return;
	}
}

/* Whether who has the port already answers as a daemon of ours does. */
static bool daemon_answers(const struct addr *addr)
{
	struct endpoint to = {0};
	struct err err = {0};
	const struct http_call call = {
		.to = &to,
		.method = "GET",
		.path = "/v1/healthz",
		.timeout_s = 2,
		.stop_fd = -1,
	};

	return endpoint_parse(&to, addr->text, &err) == 0 && http_call(&call, NULL, &err) == 0;
}

static void check_port(struct doctor *d)
{
	struct finding *f = doctor_add(d, FINDING_NOTE, "port");
	struct err err = {0};
	struct addr addr;
	int rc, fd = -1;

	rc = addr_parse(&addr, d->addr && *d->addr ? d->addr : ADDR_DEFAULT, &err);
	if (rc == 0)
		rc = addr_reserve(&addr, &fd, &err);
	if (rc == -EADDRINUSE && daemon_answers(&addr)) {
		f->level = FINDING_OK;
		doctor_found(f, "%s: podflare serves there already", addr.text);
		return;
	}
	if (rc < 0) {
		doctor_found(f, "%s", err.msg);
		return;
	}
	close(fd);
	f->level = FINDING_OK;
	doctor_found(f, "%s is free", addr.text);
	if (addr_check_keys(&addr, &err) < 0) {
		f->level = FINDING_NOTE;
		doctor_advise(f, "%.300s", err.msg);
	}
}

void doctor_check_system(struct doctor *d)
{
	check_kernel(d);
	check_memory(d);
	check_huge_pages(d);
	check_namespaces(d);
	check_landlock(d);
	check_disk(d);
	check_port(d);
}
