/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the operator of this host has configured of egress: whether there is any,
 * the list that `"egress": true` grants, the ceiling that no grant exceeds, the
 * groups, and what the proxy is told of resolvers, addresses and limits. Read once
 * at start from the file of groups and the file of --egress-config.
 *
 * It fails closed: what cannot be read or understood leaves the daemon running with
 * usable == false and a sentence, and nobody gets a grant.
 *
 * Thread: the loop's; constant after operator_load(). fork: plain memory.
 */
#pragma once

#include "egress/rules.h"

#include <jansson.h>
#include <stdbool.h>

/* Most bytes of each of the two files. */
#define OPERATOR_FILE_MAX (1u << 20)

struct egress_operator {
	bool usable;   /* false: `why` */
	bool disabled; /* usable, and "enabled" is false */
	char why[640];
	json_t *allow;                      /* "default", in normal form; an array */
	json_t *ceiling;                    /* an array, or null */
	struct egress_rules *ceiling_rules; /* NULL: no ceiling */
	json_t *groups;                     /* those of both files */
	json_t *allow_ranges, *own_ranges, *resolve, *resolvers, *upstream_ca, *limits;
};

struct operator_files {
	const char *config; /* or NULL: enabled, no default, no ceiling */
	const char *groups;
	const char *own;     /* more own_ranges, or NULL */
	const char *program; /* of the proxy, which must be there */
};

/* Never fails: see usable. */
void operator_load(struct egress_operator *o, const struct operator_files *files);
/*
 * Whether the ceiling allows at least something of each entry of a list (in normal form). What it
 * allows only in part passes: the proxy lets through what both lists allow. 0; -EINVAL with a
 * sentence that names the entry; -ENOMEM.
 */
__must_check int operator_check_ceiling(const struct egress_operator *o, const json_t *allow,
					struct err *err);
void operator_free(struct egress_operator *o);
