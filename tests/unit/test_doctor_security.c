/* SPDX-License-Identifier: Apache-2.0 */
/* What `podflare doctor --security` makes of a host's files. */
#define _GNU_SOURCE
#include "tree.h"
#include "unit.h"

#include "cli/doctor.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* In place of doctor.c, which has the printing. */
struct finding *doctor_add(struct doctor *d, enum finding_level level, const char *name)
{
	struct finding *f = &d->findings[d->n++];

	assert_true(d->n <= DOCTOR_FINDINGS_MAX);
	*f = (struct finding){.level = level, .name = name};
	return f;
}

void doctor_found(struct finding *f, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	assert_in_range(vsnprintf(f->found, sizeof(f->found), fmt, ap), 1, sizeof(f->found) - 1);
	va_end(ap);
}

void doctor_advise(struct finding *f, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	assert_in_range(vsnprintf(f->advice, sizeof(f->advice), fmt, ap), 1, sizeof(f->advice) - 1);
	va_end(ap);
}

struct host {
	char root[32], state[64], device[64];
};

static void put(const struct host *h, const char *file, const char *text)
{
	char path[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s%s", h->root, file);
	for (char *p = path + strlen(h->root) + 1; (p = strchr(p, '/')); *p++ = '/') {
		*p = '\0';
		mkdir(path, 0700);
	}
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

#define VULNERABILITIES "/sys/devices/system/cpu/vulnerabilities/"

#define GROUP "/sys/fs/cgroup/system.slice/podflare.service"
#define MOUNT "25 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,favordynmods\n"

#define LIMITS(soft, hard)                                                                       \
	"Limit                     Soft Limit           Hard Limit           Units     \n"       \
	"Max processes             9                    9                    processes \n"       \
	"Max open files            " soft "                 " hard "               files     \n" \
	"Max locked memory         8388608              8388608              bytes     \n"

/* A host that has nothing to be done. */
static int setup(void **state)
{
	struct host *h = calloc(1, sizeof(*h));

	strcpy(h->root, "/tmp/doctor.XXXXXX");
	assert_non_null(mkdtemp(h->root));
	put(h, "/proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread trap allow\n");
	put(h, VULNERABILITIES "meltdown", "Not affected\n");
	put(h, VULNERABILITIES "spectre_v2", "Mitigation: Retpolines; STIBP: disabled\n");
	put(h, "/sys/devices/system/cpu/smt/active", "0\n");
	put(h, "/sys/kernel/mm/ksm/run", "0\n");
	put(h, "/sys/module/kvm_amd/parameters/nested", "0\n");
	put(h, "/proc/sys/kernel/yama/ptrace_scope", "1\n");
	put(h, "/proc/sys/kernel/unprivileged_bpf_disabled", "2\n");
	put(h, "/proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
	put(h, "/proc/self/cgroup", "1:name=systemd:/other\n0::/system.slice/podflare.service\n");
	put(h, "/proc/self/mountinfo", "21 1 8:1 / / rw - ext4 /dev/vda1 rw\n" MOUNT);
	put(h, GROUP "/cgroup.procs", "");
	put(h, GROUP "/cgroup.subtree_control", "");
	put(h, GROUP "/cgroup.controllers", "cpuset cpu io memory pids\n");
	put(h, "/proc/self/limits", LIMITS("1024", "65536"));
	put(h, "/dev/kvm", "");
	put(h, "/state/lock", "");
	snprintf(h->device, sizeof(h->device), "%s/dev/kvm", h->root);
	snprintf(h->state, sizeof(h->state), "%s/state", h->root);
	assert_int_equal(chmod(h->device, 0660), 0);
	setenv("PODFLARE_API_KEYS", "a-key", 1);
	*state = h;
	return 0;
}

static int teardown(void **state)
{
	struct host *h = *state;

	tree_remove(h->root);
	free(h);
	return 0;
}

/* The names of what could be better, in order, with a blank behind each. */
static const char *open_subjects(const struct host *h, const char *addr, bool is_root)
{
	struct doctor d = {.state = h->state, .addr = addr};
	static char names[512];

	doctor_check_security(&d, h->root, is_root);
	assert_in_range(d.n, 14, DOCTOR_FINDINGS_MAX);
	names[0] = '\0';
	for (size_t i = 0; i < d.n; i++) {
		const struct finding *f = &d.findings[i];

		assert_true(f->found[0]);
		assert_int_equal(f->level == FINDING_OK, !f->advice[0]);
		if (f->level != FINDING_OK)
			snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s ",
				 f->name);
	}
	return names;
}

static void test_nothing_to_be_done(void **state)
{
	assert_string_equal(open_subjects(*state, NULL, false), "");
}

static void test_each_file(void **state)
{
	static const struct {
		const char *file, *text, *open;
	} cases[] = {
		{"/sys/devices/system/cpu/smt/active", "1\n", "smt "},
		{"/sys/devices/system/cpu/smt/active", NULL, ""},
		{"/sys/kernel/mm/ksm/run", "1\n", "ksm "},
		{"/sys/kernel/mm/ksm/run", "2\n", ""},
		{"/sys/module/kvm_amd/parameters/nested", "1\n", "nested "},
		{"/sys/module/kvm_intel/parameters/nested", "Y\n", "nested "},
		{"/sys/module/kvm_intel/parameters/nested", "N\n", ""},
		{"/proc/sys/kernel/yama/ptrace_scope", "0\n", "ptrace "},
		{"/proc/sys/kernel/yama/ptrace_scope", NULL, "ptrace "},
		{"/proc/sys/kernel/unprivileged_bpf_disabled", "0\n", "bpf "},
		{"/proc/sys/kernel/unprivileged_bpf_disabled", NULL, ""},
		{"/proc/sys/kernel/seccomp/actions_avail", "kill trap allow\n", "seccomp "},
		{"/proc/sys/kernel/seccomp/actions_avail", NULL, "seccomp "},
		{"/proc/swaps", "Filename Type\n/dev/vda2 partition 1048572 0 -2\n", "swap "},
		{"/proc/self/cgroup", "0::/system.slice/another.service\n", "cgroups "},
		/* It was delegated, and who was started below it leaves that. */
		{"/proc/self/cgroup", "0::/system.slice/podflare.service/podflare-start\n", ""},
		{"/proc/self/cgroup", "0::/system.slice/podflare.service/podflare-start/x\n",
		 "cgroups "},
		{"/proc/self/cgroup", "0::/system.slice/podflare.service/a-podflare-start\n",
		 "cgroups "},
		{"/proc/self/cgroup", "0::/system.slice/another.service/podflare-start\n",
		 "cgroups "},
		{"/proc/self/cgroup", "4:memory:/system.slice/podflare.service\n", "cgroups "},
		{"/proc/self/cgroup", NULL, "cgroups "},
		{"/proc/self/mountinfo", "21 1 8:1 / / rw - ext4 /dev/vda1 rw\n", "cgroups "},
		{"/proc/self/mountinfo", "25 30 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
		 "cgroups "},
		/* A container's view: what is mounted is not the root. */
		{"/proc/self/mountinfo",
		 "25 30 0:22 /system.slice /sys/fs/cgroup/system.slice rw - cgroup2 c "
		 "favordynmods\n",
		 ""},
		{"/proc/self/mountinfo",
		 "25 30 0:22 /system /sys/fs/cgroup/system.slice rw - cgroup2 c favordynmods\n",
		 "cgroups "},
		{"/proc/self/mountinfo",
		 "25 30 0:22 / /sys/fs\\057cgroup rw - cgroup2 c favordynmods\n", ""},
		{"/proc/self/mountinfo", "25 30 0:22 /\n - cgroup2 \n - \n", "cgroups "},
		{GROUP "/cgroup.controllers", "cpuset cpu io pids\n", "cgroups "},
		{GROUP "/cgroup.controllers", NULL, "cgroups "},
		{GROUP "/cgroup.procs", NULL, "cgroups "},
		{GROUP "/cgroup.subtree_control", NULL, "cgroups "},
		{VULNERABILITIES "mds", "Vulnerable: Clear CPU buffers attempted\n",
		 "processor_faults "},
		{VULNERABILITIES "itlb_multihit", "KVM: Vulnerable\n", "processor_faults "},
		{VULNERABILITIES "itlb_multihit", "KVM: Mitigation: VMX disabled\n", ""},
		{VULNERABILITIES "l1tf",
		 "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable\n",
		 "processor_faults "},
		{VULNERABILITIES "l1tf", "Mitigation: PTE Inversion; VMX: vulnerable\n",
		 "processor_faults "},
		{VULNERABILITIES "l1tf",
		 "Mitigation: PTE Inversion; VMX: flush not necessary, SMT disabled\n", ""},
		{VULNERABILITIES "vmscape", "VULNERABLE\n", "processor_faults "},
		{VULNERABILITIES "spectre_v1", "Mitigation: usercopy/swapgs barriers\n", ""},
		{"/proc/self/limits", LIMITS("1024", "1048576"), ""},
		{"/proc/self/limits", LIMITS("1024", "32768"), ""},
		{"/proc/self/limits", LIMITS("unlimited", "unlimited"), ""},
		{"/proc/self/limits", LIMITS("1024", "32767"), "descriptors "},
		{"/proc/self/limits", LIMITS("1024", "4096"), "descriptors "},
		{"/proc/self/limits", "Limit\nMax open files 1024\n", "descriptors "},
		{"/proc/self/limits", NULL, "descriptors "},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		void *other;
		struct host *h;

		assert_int_equal(setup(&other), 0);
		h = other;
		put(h, cases[i].file, cases[i].text ? cases[i].text : "");
		if (!cases[i].text) {
			char path[256];

			snprintf(path, sizeof(path), "%s%s", h->root, cases[i].file);
			assert_int_equal(unlink(path), 0);
		}
		assert_string_equal(open_subjects(h, NULL, false), cases[i].open);
		teardown(&other);
	}
	(void)state;
}

static void test_root_device_state_and_address(void **state)
{
	struct host *h = *state;

	assert_string_equal(open_subjects(h, NULL, true), "user ");
	assert_string_equal(open_subjects(h, "[::1]:80", false), "");
	assert_string_equal(open_subjects(h, "0.0.0.0:7070", false), "api ");
	assert_string_equal(open_subjects(h, "no address", false), "api ");
	/* Without keys everybody on the machine is a client. */
	setenv("PODFLARE_API_KEYS", " , ", 1);
	assert_string_equal(open_subjects(h, "[::1]:80", false), "api ");
	unsetenv("PODFLARE_API_KEYS");
	assert_string_equal(open_subjects(h, NULL, false), "api ");
	setenv("PODFLARE_API_KEYS", "a-key", 1);
	assert_int_equal(chmod(h->device, 0666), 0);
	assert_string_equal(open_subjects(h, NULL, false), "kvm_device ");
	assert_int_equal(chmod(h->state, 0750), 0);
	assert_string_equal(open_subjects(h, NULL, false), "kvm_device state ");
}

/* Others who can write above it can have the daemon use a directory of theirs; not so in /tmp. */
static void test_whose_the_state_is(void **state)
{
	struct host *h = *state;

	assert_int_equal(chmod(h->root, 0770), 0);
	assert_string_equal(open_subjects(h, NULL, false), "state ");
	assert_int_equal(chmod(h->root, 01777), 0);
	assert_string_equal(open_subjects(h, NULL, false), "");
	if (geteuid() != 0)
		return;
	assert_int_equal(chown(h->root, 12345, 0), 0);
	assert_string_equal(open_subjects(h, NULL, false), "state ");
	assert_int_equal(chown(h->root, 0, 12345), 0);
	assert_int_equal(chown(h->state, 12345, 0), 0);
	assert_string_equal(open_subjects(h, NULL, false), "state ");
}

/* Files of any length and content: what they say is cut, not believed. */
static void test_odd_files(void **state)
{
	struct host *h = *state;
	char text[6000];

	memset(text, 'V', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	for (int i = 0; i < 40; i++) {
		char file[96];

		snprintf(file, sizeof(file), VULNERABILITIES "a_fault_with_a_long_name_%d", i);
		put(h, file, "Vulnerable\n");
	}
	put(h, VULNERABILITIES "empty", "");
	put(h, VULNERABILITIES "long", text);
	put(h, "/proc/swaps", text);
	put(h, "/sys/kernel/mm/ksm/run", "");
	assert_string_equal(open_subjects(h, NULL, false), "processor_faults ");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_nothing_to_be_done, setup, teardown),
		cmocka_unit_test(test_each_file),
		cmocka_unit_test_setup_teardown(test_whose_the_state_is, setup, teardown),
		cmocka_unit_test_setup_teardown(test_root_device_state_and_address, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_odd_files, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
