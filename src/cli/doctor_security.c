/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host does beside podflare that makes its walls thicker or thinner:
 * `podflare doctor --security`. docs/hardening.md explains each subject. Reads
 * files below /proc and /sys (`root` stands before them, for the tests), and
 * changes nothing.
 */
#define _GNU_SOURCE
#include "cli/addr.h"
#include "cli/doctor.h"
#include "lib/cgroup2.h"
#include "lib/io.h"
#include "lib/owndir.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX 4096 /* longer ones are read to here */

/* Of which the daemon gives an eighth, 4096, to connections; the rest is enough for 1024 sandboxes.
 */
#define DESCRIPTORS_WANTED 32768ul

struct place {
	struct doctor *d;
	const char *root;
};

/* The text of a file without its last newline, or NULL when it cannot be read. */
static char *text_of(const struct place *p, const char *file)
{
	_cleanup_fd int fd = -1;
	char path[PATH_MAX], *text;
	ssize_t n;

	if (snprintf(path, sizeof(path), "%s%s", p->root, file) >= (int)sizeof(path))
		return NULL;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	text = fd < 0 ? NULL : malloc(FILE_MAX + 1);
	if (!text)
		return NULL;
	n = io_read_some(fd, text, FILE_MAX);
	if (n < 0) {
		free(text);
		return NULL;
	}
	while (n > 0 && isspace((unsigned char)text[n - 1]))
		n--;
	text[n] = '\0';
	return text;
}

/* A subject that one file decides. */
struct one_file {
	const char *name, *file;
	const char
		*bad; /* characters of which the first one of the file is none when all is well */
	const char *good_text, *bad_text, *advice;
	bool must_be; /* no such file is as bad */
};

static const struct one_file one_files[] = {
	{"smt", "/sys/devices/system/cpu/smt/active", "1",
	 "no two threads share a core (no SMT, or off)",
	 "SMT is on: two sandboxes can share a core, with its caches and buffers",
	 "boot with nosmt, or echo off > /sys/devices/system/cpu/smt/control, when sandboxes of "
	 "tenants who must not learn of each other run on one host"},
	{"ksm", "/sys/kernel/mm/ksm/run", "1", "the kernel does not merge equal pages",
	 "the kernel merges equal pages of different processes (KSM), which can be timed",
	 "echo 2 > /sys/kernel/mm/ksm/run, and stop what switches it on (ksmtuned)"},
	{"ptrace", "/proc/sys/kernel/yama/ptrace_scope", "0",
	 "processes of one user cannot attach to each other as they like",
	 "any process of the same user can read the memory of clients, and of an emulated host "
	 "(the "
	 "daemon, VMMs and proxies refuse it)",
	 "sysctl kernel.yama.ptrace_scope=1, and run podflare as a user of its own",
	 .must_be = true},
	{"bpf", "/proc/sys/kernel/unprivileged_bpf_disabled", "0",
	 "programs of BPF are for root only",
	 "every user may load programs of BPF, a way into many kernels",
	 "sysctl kernel.unprivileged_bpf_disabled=1"},
};

static void check_one_file(const struct place *p, const struct one_file *o)
{
	_cleanup_free char *text = text_of(p, o->file);
	struct finding *f;

	if (text ? !text[0] || !strchr(o->bad, text[0]) : !o->must_be) {
		f = doctor_add(p->d, FINDING_OK, o->name);
		doctor_found(f, "%s", o->good_text);
		return;
	}
	f = doctor_add(p->d, FINDING_NOTE, o->name);
	doctor_found(f, "%s", o->bad_text);
	doctor_advise(f, "%s", o->advice);
}

/* What the kernel says of the known faults of this processor. */
static void check_vulnerabilities(const struct place *p)
{
	static const char dir[] = "/sys/devices/system/cpu/vulnerabilities";
	struct finding *f = doctor_add(p->d, FINDING_OK, "processor_faults");
	char path[PATH_MAX], names[160] = "";
	struct dirent *e;
	size_t len = 0, n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s%s", p->root, dir);
	d = opendir(path);
	if (!d) {
		doctor_found(f, "the kernel does not say which faults of processors it mends");
		f->level = FINDING_NOTE;
		doctor_advise(f, "run a kernel that has %s", dir);
		return;
	}
	while ((e = readdir(d))) {
		_cleanup_free char *text = NULL;

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		text = text_of(p, path);
		/* Also a part of it: "KVM: Vulnerable", "...; VMX: flushes, SMT vulnerable". */
		if (!text || !strcasestr(text, "vulnerable"))
			continue;
		n++;
		if (len < sizeof(names))
			len += (size_t)snprintf(names + len, sizeof(names) - len, "%s%s",
						len ? ", " : "", e->d_name);
	}
	closedir(d);
	if (!n) {
		doctor_found(f, "no known fault of this processor is left open");
		return;
	}
	f->level = FINDING_NOTE;
	doctor_found(f, "%zu known faults of this processor are left open: %s", n, names);
	doctor_advise(f,
		      "a newer microcode and kernel; without mitigations=off on the kernel's "
		      "command line. %s/NAME says what is missing",
		      dir);
}

/* Of the two modules for KVM a host has one, or none. */
static void check_nested(const struct place *p)
{
	static const char *const modules[] = {"kvm_intel", "kvm_amd"};
	struct finding *f = doctor_add(p->d, FINDING_OK, "nested");

	for (size_t i = 0; i < ARRAY_SIZE(modules); i++) {
		_cleanup_free char *text = NULL;
		char file[64];

		snprintf(file, sizeof(file), "/sys/module/%s/parameters/nested", modules[i]);
		text = text_of(p, file);
		if (!text || !text[0] || !strchr("1Yy", text[0]))
			continue;
		f->level = FINDING_NOTE;
		doctor_found(f, "nested virtualization is on: code of KVM that no sandbox needs");
		doctor_advise(f,
			      "options %s nested=0 in /etc/modprobe.d, unless something else here "
			      "needs it",
			      modules[i]);
		return;
	}
	doctor_found(f, "guests cannot start guests");
}

static void check_swap(const struct place *p)
{
	_cleanup_free char *text = text_of(p, "/proc/swaps");
	bool some = text && strchr(text, '\n'); /* the first line is a heading */
	struct finding *f = doctor_add(p->d, some ? FINDING_NOTE : FINDING_OK, "swap");

	doctor_found(f, some ? "there is swap: memory of guests and injected secrets can get onto "
			       "a disk, and a sandbox can wait for one"
			     : "no swap: what is in memory stays there");
	if (some)
		doctor_advise(f, "swapoff -a, or swap on an encrypted device with a random key");
}

static void check_seccomp(const struct place *p)
{
	_cleanup_free char *text = text_of(p, "/proc/sys/kernel/seccomp/actions_avail");
	bool kills = text && strstr(text, "kill_process");
	struct finding *f = doctor_add(p->d, kills ? FINDING_OK : FINDING_FAIL, "seccomp");

	doctor_found(f, kills ? "system calls can be filtered"
			      : "this kernel cannot end a process for a forbidden system call");
	if (!kills)
		doctor_advise(f, "run a kernel of 4.14 or later with CONFIG_SECCOMP_FILTER");
}

/* The hard limit of who started doctor: the daemon raises its own to it. */
static void check_descriptors(const struct place *p)
{
	static const char line[] = "\nMax open files";
	_cleanup_free char *text = text_of(p, "/proc/self/limits");
	const char *at = text ? strstr(text, line) : NULL;
	struct finding *f = doctor_add(p->d, FINDING_NOTE, "descriptors");
	char hard[24] = "";

	if (!at || sscanf(at + strlen(line), "%*s %23s", hard) != 1 ||
	    (strcmp(hard, "unlimited") != 0 && (hard[0] < '0' || hard[0] > '9'))) {
		doctor_found(f, "the kernel does not say how many files may be open");
		doctor_advise(f, "/proc must be mounted");
		return;
	}
	if (hard[0] == 'u' || strtoul(hard, NULL, 10) >= DESCRIPTORS_WANTED) {
		f->level = FINDING_OK;
		doctor_found(f, "a daemon started from here may have open what 1024 sandboxes and "
				"4096 connections take");
		return;
	}
	doctor_found(f,
		     "a daemon started from here may have %s files open, which is less than it "
		     "shares out to clients and sandboxes where it can",
		     hard);
	doctor_advise(f, "LimitNOFILE=65536 in its service, or ulimit -Hn: docs/hardening.md");
}

static void check_kvm_device(const struct place *p)
{
	char path[PATH_MAX];
	struct finding *f;
	struct stat st;

	snprintf(path, sizeof(path), "%s/dev/kvm", p->root);
	if (stat(path, &st) < 0)
		return;
	f = doctor_add(p->d, st.st_mode & 06 ? FINDING_NOTE : FINDING_OK, "kvm_device");
	doctor_found(f, st.st_mode & 06 ? "every user of this host may use KVM"
					: "KVM is for its owner and group only");
	if (st.st_mode & 06)
		doctor_advise(f, "chmod 660 /dev/kvm (a rule of udev), and have only the user that "
				 "runs podflare in its group");
}

static void check_user(const struct place *p, bool root)
{
	struct finding *f = doctor_add(p->d, root ? FINDING_NOTE : FINDING_OK, "user");

	doctor_found(f, root ? "this is root; as root the daemon has more than it needs"
			     : "this is not root");
	if (root)
		doctor_advise(f, "run podflare as a user of its own that owns its state directory "
				 "and is in the group kvm");
}

static void check_state(const struct place *p)
{
	char path[PATH_MAX], which[PATH_MAX];
	struct finding *f;
	struct stat st;
	bool open, above;

	if (!p->d->state || snprintf(path, sizeof(path), "%s", p->d->state) >= (int)sizeof(path))
		if (paths_default_state(path, NULL) < 0)
			return;
	if (stat(path, &st) < 0) {
		f = doctor_add(p->d, FINDING_OK, "state");
		doctor_found(f,
			     "the daemon will make the state directory for its user only (%.130s)",
			     path);
		return;
	}
	open = st.st_mode & 077;
	above = owndir_above_is_open(path, which);
	f = doctor_add(p->d, st.st_uid != geteuid() || open || above ? FINDING_NOTE : FINDING_OK,
		       "state");
	if (st.st_uid != geteuid()) {
		doctor_found(f,
			     "the state directory is not this user's, whose daemon would refuse it "
			     "(%.130s)",
			     path);
		doctor_advise(f, "run podflare, and doctor, as user %u, or chown it", st.st_uid);
	} else if (open) {
		doctor_found(f, "others can look into the state directory (%.150s)", path);
		doctor_advise(f, "chmod 700 %.200s", path);
	} else if (above) {
		doctor_found(f,
			     "others can put a directory of theirs in the place of the state "
			     "directory: %.120s is not only root's and this user's",
			     which);
		doctor_advise(f, "chmod go-w %.150s, or have the state elsewhere", which);
	} else {
		doctor_found(f, "nobody else can look into the state directory (%.150s)", path);
	}
}

static void check_api(const struct place *p)
{
	struct finding *f = doctor_add(p->d, FINDING_NOTE, "api");
	struct err err = {0};
	struct addr addr;

	if (addr_parse(&addr, p->d->addr && *p->d->addr ? p->d->addr : ADDR_DEFAULT, &err) < 0) {
		doctor_found(f, "%.200s", err.msg);
		doctor_advise(f, "name one with --addr, as the daemon's");
		return;
	}
	if (addr.loopback && addr_has_keys()) {
		f->level = FINDING_OK;
		doctor_found(f, "%s: the API is for this machine only, and for who has a key",
			     addr.text);
		return;
	}
	if (addr.loopback) {
		doctor_found(f,
			     "%s: the API is for this machine only; a daemon started from here has "
			     "no keys: every process of every user here has all its sandboxes",
			     addr.text);
		doctor_advise(f, "set PODFLARE_API_KEYS, unless nobody else and nothing else runs "
				 "here: docs/hardening.md");
		return;
	}
	doctor_found(f, "%s: the API can be reached from other machines, and speaks plain HTTP",
		     addr.text);
	doctor_advise(f, "let it listen on 127.0.0.1 and put a server with TLS before it; keys "
			 "(PODFLARE_API_KEYS) in any case");
}

/*
 * As seen from where doctor was started: the daemon finds the same when it is started there, and
 * else when it is a service with groups of its own.
 */
static void check_cgroups(const struct place *p)
{
	const unsigned int all = CGROUP2_CPU | CGROUP2_MEMORY | CGROUP2_PIDS;
	struct finding *f = doctor_add(p->d, FINDING_NOTE, "cgroups");
	struct cgroup2_place place;
	struct err err = {0};
	char names[64];

	if (cgroup2_find(&place, p->root, &err) < 0 || (place.controllers & all) != all) {
		cgroup2_names(all & ~place.controllers, names, sizeof(names));
		if (err.num)
			doctor_found(f, "a daemon started from here limits no VM: %.150s", err.msg);
		else
			doctor_found(f,
				     "a daemon started from here does not limit all of a VM; not "
				     "delegated: %s",
				     names);
		doctor_advise(f,
			      "run it as a service with Delegate=yes, and PODFLARE_CGROUP=require: "
			      "docs/hardening.md");
		return;
	}
	if (!place.favordynmods) {
		doctor_found(f, "a daemon started from here limits each VM, and each new one waits "
				"5 to 25 ms for the host's kernel");
		doctor_advise(f,
			      "mount -o remount,favordynmods /sys/fs/cgroup (Linux 6.0 or later)");
		return;
	}
	f->level = FINDING_OK;
	doctor_found(f, "a daemon started from here limits processor, memory and tasks of each VM");
}

void doctor_check_security(struct doctor *d, const char *root, bool is_root)
{
	struct place p = {.d = d, .root = root};

	check_seccomp(&p);
	check_vulnerabilities(&p);
	for (size_t i = 0; i < ARRAY_SIZE(one_files); i++)
		check_one_file(&p, &one_files[i]);
	check_nested(&p);
	check_swap(&p);
	check_descriptors(&p);
	check_kvm_device(&p);
	check_user(&p, is_root);
	check_state(&p);
	check_cgroups(&p);
	check_api(&p);
}
