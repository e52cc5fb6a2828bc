/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which programs are there: what emulated mode needs at run time, what `make`
 * needs, and whether `make` has made its parts.
 */
#include "cli/doctor.h"
#include "cli/tools.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define VERSION_LIMIT_MS 5000

/* The first line that a program prints about its version, from the first digit on. */
static void read_version(char *program, const char *option, char *out, size_t size)
{
	char option_copy[16], text[1024];
	char *argv[] = {program, option_copy, NULL};
	char *p = text, *end;

	out[0] = '\0';
	snprintf(option_copy, sizeof(option_copy), "%s", option);
	if (tools_run(argv, VERSION_LIMIT_MS, text, sizeof(text)) < 0)
		return;
	/* "mke2fs 1.47.0": a digit inside a word is no version. */
	while (*p && !(isdigit((unsigned char)*p) && (p == text || isspace((unsigned char)p[-1]))))
		p++;
	end = p + strcspn(p, " ,()\n");
	*end = '\0';
	snprintf(out, size, " %.40s", p);
}

static bool check_tool(struct doctor *d, const char *label, const char *name, const char *option,
		       const char *package, const char *why)
{
	char program[PATH_MAX], version[64];
	bool found = tools_find(name, program) == 0;
	struct finding *f = doctor_add(d, found ? FINDING_OK : FINDING_FAIL, label);

	if (!found) {
		doctor_found(f, "%s is not installed: %s", name, why);
		doctor_advise(f, "apt install %s", package);
		if (d->hardware)
			f->level = FINDING_NOTE;
		return false;
	}
	read_version(program, option, version, sizeof(version));
	doctor_found(f, "%s%s", name, version);
	return true;
}

static void check_build_tools(struct doctor *d)
{
	static const struct {
		const char *name, *package;
	} tools[] = {
		{"gcc", "gcc"},
		{"meson", "meson"},
		{"ninja", "ninja-build"},
		{"pkg-config", "pkg-config"},
		{"python3", "python3"},
		{"strip", "binutils"},
		{"mmdebstrap", "mmdebstrap"},
		{"mkfs.erofs", "erofs-utils"},
		{"busybox", "busybox-static"},
	};
	char path[PATH_MAX], names[200] = "", packages[200] = "";
	struct finding *f;

	for (size_t i = 0; i < ARRAY_SIZE(tools); i++) {
		size_t n = strlen(names), p = strlen(packages);

		if (tools_find(tools[i].name, path) == 0)
			continue;
		snprintf(names + n, sizeof(names) - n, "%s%s", n ? ", " : "", tools[i].name);
		snprintf(packages + p, sizeof(packages) - p, " %s", tools[i].package);
	}
	f = doctor_add(d, names[0] ? FINDING_NOTE : FINDING_OK, "build_tools");
	if (!names[0]) {
		doctor_found(f, "all there");
		return;
	}
	doctor_found(f, "for make: %s missing", names);
	doctor_advise(f, "tools/install-deps.sh installs them, as does: apt install%s", packages);
}

static void check_parts(struct doctor *d)
{
	struct finding *f = doctor_add(d, FINDING_OK, "parts");
	struct err err = {0};

	if (paths_check(&d->paths, !d->hardware, &err) == 0) {
		doctor_found(f, "programs and guest files are in %s", d->paths.base);
		return;
	}
	f->level = FINDING_NOTE;
	doctor_found(f, "%s", err.msg);
}

void doctor_check_tools(struct doctor *d)
{
	bool qemu = check_tool(d, "qemu", "qemu-system-x86_64", "--version", "qemu-system-x86",
			       "emulated mode needs it");
	bool mkfs = check_tool(d, "mkfs", "mkfs.ext4", "-V", "e2fsprogs",
			       "emulated mode makes its state disk with it");

	d->emulated = qemu && mkfs;
	check_build_tools(d);
	check_parts(d);
}
