/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock looks at paths as they are when the rules are made: /etc/resolv.conf, which QEMU reads
 * again whenever it has changed, is allowed with the directory that it lies in only where that is
 * one of its own (systemd-resolved). Elsewhere QEMU goes on with what it has read.
 */
#define _GNU_SOURCE
#include "cli/qemu_jail.h"

#include "cli/cli.h"
#include "cli/qemu_filter.h"
#include "lib/caps.h"
#include "lib/landlock.h"

#include <errno.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define RUN  (LANDLOCK_READ | LANDLOCK_EXECUTE)
#define DISK (LANDLOCK_READ | LANDLOCK_IOCTL)

/* Where programs, libraries and QEMU's own files are, and nothing that is secret. */
static const struct landlock_path system_paths[] = {
	{"/usr", RUN},
	{"/bin", RUN},
	{"/lib", RUN},
	{"/lib64", RUN},
	{"/nix/store", RUN},
	{"/gnu/store", RUN},
	{"/etc/ld.so.cache", LANDLOCK_READ},
	{"/etc/ld.so.preload", LANDLOCK_READ},
	{"/dev/null", LANDLOCK_READ | LANDLOCK_WRITE},
	{"/dev/urandom", LANDLOCK_READ},
};

#define PATHS_MAX (ARRAY_SIZE(system_paths) + QEMU_DISKS_MAX + 8)

struct jail {
	struct landlock_path paths[PATHS_MAX];
	size_t n;
	char kernel[PATH_MAX], initramfs[PATH_MAX];
	char program[PATH_MAX], libraries[PATH_MAX], data[PATH_MAX], resolver[PATH_MAX];
};

static void allow(struct jail *j, const char *path, unsigned int rights)
{
	if (j->n < PATHS_MAX)
		j->paths[j->n++] = (struct landlock_path){path, rights};
}

/* A QEMU that is not the system's: itself, and what lies beside its bin/. */
static void allow_program(struct jail *j, const char *program)
{
	char *slash;

	allow(j, program, RUN);
	if (!realpath(program, j->program))
		return;
	for (int i = 0; i < 2; i++) {
		slash = strrchr(j->program, '/');
		if (!slash)
			return;
		*slash = '\0';
	}
	if (snprintf(j->libraries, PATH_MAX, "%s/lib", j->program) < PATH_MAX)
		allow(j, j->libraries, RUN);
	if (snprintf(j->data, PATH_MAX, "%s/share/qemu", j->program) < PATH_MAX)
		allow(j, j->data, LANDLOCK_READ);
}

static void allow_resolver(struct jail *j)
{
	static const char file[] = "/etc/resolv.conf";
	char *slash;

	allow(j, file, LANDLOCK_READ);
	if (!realpath(file, j->resolver) || strncmp(j->resolver, "/run/", 5) != 0)
		return;
	slash = strrchr(j->resolver, '/');
	*slash = '\0';
	if (strlen(j->resolver) > strlen("/run/"))
		allow(j, j->resolver, LANDLOCK_READ);
}

static int confine(const char *program, const struct qemu_config *c)
{
	struct jail j = {.n = 0};
	struct landlock_rules rules;
	int rc;

	for (size_t i = 0; i < ARRAY_SIZE(system_paths); i++)
		allow(&j, system_paths[i].path, system_paths[i].rights);
	allow_program(&j, program);
	if (paths_join(c->paths, "box/vmlinux", j.kernel) == 0)
		allow(&j, j.kernel, LANDLOCK_READ);
	if (paths_join(c->paths, "box/initramfs.cpio", j.initramfs) == 0)
		allow(&j, j.initramfs, LANDLOCK_READ);
	for (size_t i = 0; i < c->ndisks; i++)
		allow(&j, c->disks[i].path, DISK | (c->disks[i].readonly ? 0 : LANDLOCK_WRITE));
	if (c->network == QEMU_OUTWARD)
		allow_resolver(&j);
	rules = (struct landlock_rules){
		.paths = j.paths,
		.n = j.n,
		.port = c->port,
		.dials = c->network == QEMU_OUTWARD,
	};
	rc = landlock_allow(&rules);
	return rc < 0 ? rc : 0;
}

/*
 * No core, of what the emulation itself knows of guests. 0 would be for files alone: a program that
 * the kernel pipes cores to (core_pattern) gets none if the limit is 1, which is too little for a
 * file.
 */
static int no_core(void)
{
	static const struct rlimit one = {1, 1}, none = {0, 0};

	return setrlimit(RLIMIT_CORE, &one) < 0 && setrlimit(RLIMIT_CORE, &none) < 0 ? -errno : 0;
}

/* Its own disk and the images may be another user's, by way of whose directories only root gets. */
static int give_up_root(const struct qemu_config *c)
{
	int rc = caps_keep(1ull << CAP_DAC_OVERRIDE | 1ull << CAP_DAC_READ_SEARCH |
			   1ull << CAP_NET_BIND_SERVICE);

	/* Who is not root may have been given that one for a low port (AmbientCapabilities=). */
	if (rc == 0 && c->port && c->port < IPPORT_RESERVED)
		rc = caps_pass(CAP_NET_BIND_SERVICE);
	return rc;
}

void qemu_jail_exec(char *const argv[], const struct qemu_config *c)
{
	static char path[] = "PATH=/usr/bin:/bin", language[] = "LANG=C";
	char *const environment[] = {path, language, NULL};
	const char *what = "its limits";
	int rc = no_core();

	if (rc == 0) {
		what = "its capabilities";
		rc = give_up_root(c);
	}
	if (rc == 0) {
		what = "PR_SET_NO_NEW_PRIVS";
		rc = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
	}
	if (rc == 0) {
		what = "Landlock";
		rc = confine(argv[0], c);
	}
	if (rc == 0) {
		what = "its filter of system calls";
		rc = qemu_filter(c->network == QEMU_OUTWARD);
	}
	if (rc == 0) {
		what = argv[0];
		execve(argv[0], argv, environment);
		rc = -errno;
	}
	fprintf(stderr, "QEMU cannot be started in its jail: %s: %s\n", what, strerror(-rc));
}

void qemu_jail_tell(void)
{
	if (landlock_abi() == 0)
		cli_say("this kernel has no Landlock, or it is not turned on: who gets out of the "
			"emulated host has all files of this user (podflare doctor)");
}
