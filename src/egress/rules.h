/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules of an allowlist: parsing, and the question whether they allow a
 * destination. Pure functions without I/O, used by podflare-egress (which
 * enforces), podflared (which refuses bad entries at create) and the tests.
 *
 * An entry is a string or an object:
 *   "api.example.com"     this name, ports 443 and 80
 *   "api.example.com:8443" this name, this port only
 *   "*.example.com"       every name below it, not itself
 *   "pypi"                a group (a word without a dot): the entries of the file of groups
 *   {"host": "api.example.com" | "*.example.com",
 *    "ports": [443],      default [443, 80]
 *    "methods": ["GET"],  default any. Together with paths it can only be held where the proxy sees
 *    "paths": ["/v1/"],   the request: plain HTTP, the gateway, an intercepted host. Prefixes, that
 *                         end at a "/" or at the end of the path: "/v1" is for /v1 and /v1/x, not
 *                         for /v10. Methods are compared as they are (GET is not HEAD)
 *    "tls": true}         default. false: a tunnel to it need not begin with a TLS ClientHello
 *
 * Names are compared in their normal form: lower case, IDNA2008 A-labels. Refused, with the entry
 * named: addresses in any spelling (dotted, decimal, octal, hexadecimal, IPv6), a trailing dot,
 * empty labels, labels over 63 and names over 253 bytes, control characters and NUL, "*" elsewhere
 * than as the whole first label, a wildcard with fewer than two labels behind it, ports out
 * of 1..65535, names of one label (but for a group), names under "egress" (the gateway's) and
 * "localhost"; unknown members, and lists of ports, methods or paths that are empty. An empty list
 * allows nothing.
 *
 * IDNA2008 without the mappings of browsers: dots other than "." and characters that look like
 * ASCII, are invisible or change length are refused; so are A-labels ("xn--") that are not what
 * their own decoding gives, and emoji. Capitals become small in all scripts.
 *
 * A path that a server could read in two ways (dot segments, "//", backslashes, encoded slashes,
 * dots and percent signs, ...) is under no prefix.
 *
 * Thread: any; objects are constant once they are parsed. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EGRESS_HOST_MAX    253u
#define EGRESS_ENTRIES_MAX 256u  /* of a list and of a group */
#define EGRESS_RULES_MAX   4096u /* of a list, groups expanded */
#define EGRESS_GROUP_MAX   32u   /* bytes of a group's name: lower case, digits, "-", "_" */

struct egress_rules;

/*
 * list: JSON array of entries. groups: JSON object, name -> array of entries (which name no
 * groups), or NULL. Groups that the list does not name are not looked at. 0; -EINVAL with a
 * sentence that names the entry, counted from 1; -ENOMEM.
 */
__must_check int egress_rules_parse(struct egress_rules **out, const json_t *list,
				    const json_t *groups, struct err *err);
void egress_rules_free(struct egress_rules *r);

/* All of a file of groups, as the daemon asks when it reads one. Errors as above. */
__must_check int egress_groups_check(const json_t *groups, struct err *err);

/*
 * The list in normal form: groups as they were written, ports ascending, each entry once and as a
 * string where a string says it all. New reference, to what must not be changed.
 */
json_t *egress_rules_json(const struct egress_rules *r);

/*
 * Normal form of a name that a client asks for, into out; never an address. 0; -EINVAL with a
 * sentence that quotes the name; -ENOMEM. out is "" then. len: a name may hold NUL bytes (and is
 * refused then).
 */
__must_check int egress_host_normal(const char *name, size_t len, char out[EGRESS_HOST_MAX + 1],
				    struct err *err);

struct egress_query {
	const char *host; /* normal form */
	uint16_t port;
	const char *method,
		*path; /* NULL: not known (a tunnel). path: from the "/", without query */
};

enum egress_match {
	EGRESS_NO_RULE,     /* no entry has this name */
	EGRESS_NO_PORT,     /* entries have the name, none the port */
	EGRESS_NO_METHOD,   /* ... the port, none the method */
	EGRESS_NO_PATH,     /* ... the method, none the path; or the path has no single meaning */
	EGRESS_NEEDS_PLAIN, /* an entry would do, but asks for a method or path, and this is a
			       tunnel */
	EGRESS_MATCH,
};

struct egress_answer {
	enum egress_match match;
	bool tls; /* a tunnel must be TLS: no entry that matches has "tls": false */
	/* The entry, for people: "*.example.com", "pypi: files.pythonhosted.org". With MATCH, and
	 * with NEEDS_PLAIN: who opens the tunnel (interception) may go on, and asks again for each
	 * request within. Else "". */
	char rule[300];
	char nearest[300]; /* of a denial: an entry that comes close, or "" */
};

/* The best of all entries; their order does not matter. */
void egress_rules_ask(const struct egress_rules *r, const struct egress_query *q,
		      struct egress_answer *a);

/*
 * Whether there may be a request that both lists allow. *name: whether they have at least a name in
 * common. False is certain: nothing that one allows will the other allow.
 */
bool egress_rules_meet(const struct egress_rules *a, const struct egress_rules *b, bool *name);
