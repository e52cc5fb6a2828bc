/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Findings of `podflare doctor`. A check looks at one subject and adds one
 * finding or several; doctor.c prints them. Findings are kept in a fixed
 * table: one that does not fit is dropped, and a test counts them.
 */
#pragma once

#include "cli/host.h"
#include "cli/paths.h"

#include <stdbool.h>
#include <stddef.h>

enum finding_level {
	FINDING_OK,
	FINDING_NOTE, /* works, could be better */
	FINDING_FAIL, /* does not work: says what it stops */
};

struct finding {
	enum finding_level level;
	const char *name; /* stable word, for --json */
	char found[256];
	char advice[384]; /* "" when there is nothing to do */
};

#define DOCTOR_FINDINGS_MAX 32

struct doctor {
	struct host_facts facts;
	struct paths paths;
	const char *addr, *state; /* as given; NULL: default */
	struct finding findings[DOCTOR_FINDINGS_MAX];
	size_t n;
	bool hardware, emulated; /* modes that are possible here */
};

/* Adds a finding; the texts are set with doctor_found() and doctor_advise(). */
struct finding *doctor_add(struct doctor *d, enum finding_level level, const char *name);
void doctor_found(struct finding *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void doctor_advise(struct finding *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The processor, KVM and whether a guest runs: sets d->hardware. */
void doctor_check_processor(struct doctor *d);
/* Kernel version, memory, huge pages, namespaces, Landlock, disk space, port. */
void doctor_check_system(struct doctor *d);
/* Which templates are built, and whether their recipes have changed since. */
void doctor_check_templates(struct doctor *d);
/*
 * What makes the walls thicker or thinner on this host. root: stands before /proc, /sys and /dev,
 * "" but for tests. is_root: as which this process would run the daemon.
 */
void doctor_check_security(struct doctor *d, const char *root, bool is_root);
/* QEMU and mkfs.ext4 (sets d->emulated), and the tools that `make` needs. */
void doctor_check_tools(struct doctor *d);
