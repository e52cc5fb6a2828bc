/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses that a name resolved to: which may be dialled. Public ones, and no
 * others, unless the operator allows a range. "Public" is what the registries
 * of IANA call globally reachable, less what only exists to carry something
 * else (6to4, Teredo, ...); in IPv6, nothing outside 2000::/3.
 *
 * An address that carries an IPv4 address ends at that one, so that one is
 * looked at as well: NAT64 (64:ff9b::/96) and ISATAP are as good as it is;
 * IPv4-mapped, IPv4-compatible, 6to4, Teredo and local NAT64 are refused by
 * themselves, and a range that allows them still leaves the carried one to be
 * checked. A range of local NAT64 (64:ff9b:1::/48) is the prefix of the translator:
 * its length tells where the carried one is.
 *
 * Ranges of the operator are JSON strings in CIDR form, "192.0.2.0/24",
 * "2001:db8::/32", always with the length and without bits behind it. They
 * allow what is refused, never the reverse. No range allows the unspecified
 * address, multicast or broadcast, which are no destinations; an address of a
 * cloud's metadata service needs a range of that address alone (/32, /128), so
 * that nobody opens it by a range that was meant for something else.
 *
 * Thread: any; objects are constant once they are parsed. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <jansson.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define EGRESS_RANGES_MAX 256u
#define EGRESS_WHY_MAX    200u

enum egress_addr_class {
	EGRESS_A_PUBLIC,
	EGRESS_A_NONE, /* neither IPv4 nor IPv6, or with a zone */
	EGRESS_A_UNSPECIFIED,
	EGRESS_A_THIS_NETWORK, /* 0.0.0.0/8 */
	EGRESS_A_LOOPBACK,
	EGRESS_A_PRIVATE,
	EGRESS_A_SHARED, /* carrier-grade NAT, 100.64.0.0/10 */
	EGRESS_A_LINK_LOCAL,
	EGRESS_A_METADATA, /* of a cloud: credentials */
	EGRESS_A_UNIQUE_LOCAL,
	EGRESS_A_SITE_LOCAL,
	EGRESS_A_MULTICAST,
	EGRESS_A_BROADCAST,
	EGRESS_A_RESERVED,
	EGRESS_A_PROTOCOL, /* IETF protocol assignments */
	EGRESS_A_DOCUMENTATION,
	EGRESS_A_BENCHMARK,
	EGRESS_A_DISCARD,
	EGRESS_A_ORCHID, /* identifiers, not addresses */
	EGRESS_A_MAPPED, /* ::ffff:0:0/96 and its kin */
	EGRESS_A_COMPATIBLE,
	EGRESS_A_6TO4,
	EGRESS_A_TEREDO,
	EGRESS_A_NAT64_LOCAL, /* 64:ff9b:1::/48 */
	EGRESS_A_NAT64,       /* 64:ff9b::/96; what it carries decides */
	EGRESS_A_ISATAP,      /* the same */
	EGRESS_ADDR_CLASSES
};

struct egress_ranges;

/* list: JSON array of strings. 0; -EINVAL with a sentence that names the entry; -ENOMEM. */
__must_check int egress_ranges_parse(struct egress_ranges **out, const json_t *list,
				     struct err *err);
void egress_ranges_free(struct egress_ranges *r);

/* Whether one of the ranges, which may be NULL, has the address. */
bool egress_ranges_have(const struct egress_ranges *r, const struct sockaddr *sa);
/* Whether one of them is that address alone (/32, /128). */
bool egress_ranges_name(const struct egress_ranges *r, const struct sockaddr *sa);

/* Of the address as it is written, without what it carries. */
enum egress_addr_class egress_addr_classify(const struct sockaddr *sa);
/* "a loopback address" */
const char *egress_addr_class_text(enum egress_addr_class c);

/* The IPv4 address that an IPv6 one carries, without a port; false: it carries none. */
bool egress_addr_carried(const struct sockaddr *sa, const struct egress_ranges *ranges,
			 struct sockaddr_in *out);
/*
 * 0: may be dialled. -EACCES: may not. -EAFNOSUPPORT: is neither AF_INET nor AF_INET6. ranges: NULL
 * is none. why gets a phrase in all cases ("a public address", "a loopback address, allowed by the
 * range 127.0.0.1/32"); it may be NULL.
 */
__must_check int egress_addr_check(const struct sockaddr *sa, const struct egress_ranges *ranges,
				   char why[EGRESS_WHY_MAX]);
