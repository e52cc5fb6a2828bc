/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Classes of addresses, and the check before a dial. The tables are those of IANA's registries of
 * special-purpose addresses (RFC 6890 and what came after it); the first row that holds an address
 * is its class, so narrow ones come first.
 *
 * Stateless; any thread. fork: no state.
 */
#include "egress/addr_impl.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct row4 {
	uint32_t net; /* host byte order */
	uint8_t bits;
	enum egress_addr_class class;
};

struct row6 {
	uint16_t net[8]; /* host byte order */
	uint8_t bits;
	enum egress_addr_class class;
};

#define V4(a, b, c, d) ((uint32_t)(a) << 24 | (b) << 16 | (c) << 8 | (d))

static const struct row4 table4[] = {
	{V4(0, 0, 0, 0), 32, EGRESS_A_UNSPECIFIED}, /* Linux dials 127.0.0.1 for it */
	{V4(255, 255, 255, 255), 32, EGRESS_A_BROADCAST},
	{V4(169, 254, 169, 254), 32, EGRESS_A_METADATA}, /* nearly all clouds */
	{V4(169, 254, 169, 253), 32, EGRESS_A_METADATA}, /* AWS: resolver of the VPC */
	{V4(169, 254, 170, 2), 32, EGRESS_A_METADATA},   /* AWS: tasks of containers */
	{V4(169, 254, 170, 23), 32, EGRESS_A_METADATA},  /* AWS: identities of pods */
	{V4(169, 254, 42, 42), 32, EGRESS_A_METADATA},   /* Scaleway */
	{V4(169, 254, 0, 23), 32, EGRESS_A_METADATA},    /* Tencent */
	{V4(168, 63, 129, 16), 32, EGRESS_A_METADATA},   /* Azure; public by its number */
	{V4(100, 100, 100, 200), 32, EGRESS_A_METADATA}, /* Alibaba */
	{V4(192, 0, 0, 192), 32, EGRESS_A_METADATA},     /* Oracle */
	{V4(0, 0, 0, 0), 8, EGRESS_A_THIS_NETWORK},
	{V4(10, 0, 0, 0), 8, EGRESS_A_PRIVATE},
	{V4(100, 64, 0, 0), 10, EGRESS_A_SHARED},
	{V4(127, 0, 0, 0), 8, EGRESS_A_LOOPBACK},
	{V4(169, 254, 0, 0), 16, EGRESS_A_LINK_LOCAL},
	{V4(172, 16, 0, 0), 12, EGRESS_A_PRIVATE},
	{V4(192, 0, 0, 0), 24, EGRESS_A_PROTOCOL},
	{V4(192, 0, 2, 0), 24, EGRESS_A_DOCUMENTATION},
	{V4(192, 88, 99, 0), 24, EGRESS_A_6TO4}, /* its relays, RFC 7526 */
	{V4(192, 168, 0, 0), 16, EGRESS_A_PRIVATE},
	{V4(198, 18, 0, 0), 15, EGRESS_A_BENCHMARK},
	{V4(198, 51, 100, 0), 24, EGRESS_A_DOCUMENTATION},
	{V4(203, 0, 113, 0), 24, EGRESS_A_DOCUMENTATION},
	{V4(224, 0, 0, 0), 4, EGRESS_A_MULTICAST},
	{V4(240, 0, 0, 0), 4, EGRESS_A_RESERVED},
};

static const struct row6 table6[] = {
	{{0}, 128, EGRESS_A_UNSPECIFIED},
	{{0, 0, 0, 0, 0, 0, 0, 1}, 128, EGRESS_A_LOOPBACK},
	{{0}, 96, EGRESS_A_COMPATIBLE},                         /* RFC 4291, 2.5.5.1 */
	{{0, 0, 0, 0, 0, 0xffff}, 96, EGRESS_A_MAPPED},         /* RFC 4291, 2.5.5.2 */
	{{0, 0, 0, 0, 0xffff, 0}, 96, EGRESS_A_MAPPED},         /* RFC 2765: translated */
	{{0x64, 0xff9b}, 96, EGRESS_A_NAT64},                   /* RFC 6052 */
	{{0x64, 0xff9b, 1}, 48, EGRESS_A_NAT64_LOCAL},          /* RFC 8215 */
	{{0x100, 0, 0, 0}, 64, EGRESS_A_DISCARD},               /* RFC 6666 */
	{{0x100, 0, 0, 1}, 64, EGRESS_A_DISCARD},               /* RFC 9780 */
	{{0x2001, 0}, 32, EGRESS_A_TEREDO},                     /* RFC 4380 */
	{{0x2001, 2, 0}, 48, EGRESS_A_BENCHMARK},               /* RFC 5180 */
	{{0x2001, 0x10}, 28, EGRESS_A_ORCHID},                  /* RFC 4843 */
	{{0x2001, 0x20}, 28, EGRESS_A_ORCHID},                  /* RFC 7343 */
	{{0x2001}, 23, EGRESS_A_PROTOCOL},                      /* RFC 2928 */
	{{0x2001, 0xdb8}, 32, EGRESS_A_DOCUMENTATION},          /* RFC 3849 */
	{{0x3fff}, 20, EGRESS_A_DOCUMENTATION},                 /* RFC 9637 */
	{{0x2002}, 16, EGRESS_A_6TO4},                          /* RFC 3056 */
	{{0xfd00, 0xec2, [7] = 0x254}, 128, EGRESS_A_METADATA}, /* AWS */
	{{0xfd00, 0xec2, [7] = 0x23}, 128, EGRESS_A_METADATA},  /* AWS: identities of pods */
	{{0xfd00, 0xec2, [7] = 0x253}, 128, EGRESS_A_METADATA}, /* AWS: resolver */
	{{0xfd20, 0xce, [7] = 0x254}, 128, EGRESS_A_METADATA},  /* Google */
	{{0xfd00, 0x42, [7] = 0x42}, 128, EGRESS_A_METADATA},   /* Scaleway */
	{{0xfc00}, 7, EGRESS_A_UNIQUE_LOCAL},                   /* RFC 4193 */
	{{0xfe80}, 10, EGRESS_A_LINK_LOCAL},
	{{0xfec0}, 10, EGRESS_A_SITE_LOCAL}, /* RFC 3879 */
	{{0xff00}, 8, EGRESS_A_MULTICAST},
};

static const char *const class_text[] = {
	[EGRESS_A_PUBLIC] = "a public address",
	[EGRESS_A_NONE] = "not an address that can be dialled",
	[EGRESS_A_UNSPECIFIED] = "the unspecified address",
	[EGRESS_A_THIS_NETWORK] = "an address of \"this network\"",
	[EGRESS_A_LOOPBACK] = "a loopback address",
	[EGRESS_A_PRIVATE] = "a private address",
	[EGRESS_A_SHARED] = "a shared (carrier-grade NAT) address",
	[EGRESS_A_LINK_LOCAL] = "a link-local address",
	[EGRESS_A_METADATA] = "the address of a cloud's metadata service",
	[EGRESS_A_UNIQUE_LOCAL] = "a unique local (private) address",
	[EGRESS_A_SITE_LOCAL] = "a site-local address",
	[EGRESS_A_MULTICAST] = "a multicast address",
	[EGRESS_A_BROADCAST] = "the broadcast address",
	[EGRESS_A_RESERVED] = "a reserved address",
	[EGRESS_A_PROTOCOL] = "an address of IETF protocol assignments",
	[EGRESS_A_DOCUMENTATION] = "a documentation address",
	[EGRESS_A_BENCHMARK] = "a benchmarking address",
	[EGRESS_A_DISCARD] = "an address of the discard range",
	[EGRESS_A_ORCHID] = "an ORCHID identifier",
	[EGRESS_A_MAPPED] = "an IPv4-mapped address",
	[EGRESS_A_COMPATIBLE] = "an IPv4-compatible address",
	[EGRESS_A_6TO4] = "a 6to4 address",
	[EGRESS_A_TEREDO] = "a Teredo address",
	[EGRESS_A_NAT64_LOCAL] = "an address of local NAT64",
	[EGRESS_A_NAT64] = "a NAT64 address",
	[EGRESS_A_ISATAP] = "an ISATAP address",
};
_Static_assert(ARRAY_SIZE(class_text) == EGRESS_ADDR_CLASSES, "a text for each class");

const char *egress_addr_class_text(enum egress_addr_class c)
{
	return class_text[c];
}

static enum egress_addr_class classify4(const uint8_t *b)
{
	uint32_t a = V4(b[0], b[1], b[2], b[3]);

	for (size_t i = 0; i < ARRAY_SIZE(table4); i++) {
		if ((a ^ table4[i].net) >> (32 - table4[i].bits) == 0)
			return table4[i].class;
	}
	return EGRESS_A_PUBLIC;
}

static enum egress_addr_class classify6(const uint8_t *b)
{
	/* RFC 5214, 6.1: the interface identifier of ISATAP, with and without the "u" bit. */
	static const uint8_t isatap[4] = {0, 0, 0x5e, 0xfe}, isatap_u[4] = {2, 0, 0x5e, 0xfe};

	for (size_t i = 0; i < ARRAY_SIZE(table6); i++) {
		uint8_t net[16];

		for (size_t k = 0; k < 8; k++) {
			net[2 * k] = (uint8_t)(table6[i].net[k] >> 8);
			net[2 * k + 1] = (uint8_t)table6[i].net[k];
		}
		if (addr_bits_equal(net, b, table6[i].bits))
			return table6[i].class;
	}
	if ((b[0] & 0xe0) != 0x20) /* RFC 4291, 2.4: what IANA gives out is 2000::/3 */
		return EGRESS_A_RESERVED;
	if (memcmp(b + 8, isatap, 4) == 0 || memcmp(b + 8, isatap_u, 4) == 0)
		return EGRESS_A_ISATAP;
	return EGRESS_A_PUBLIC;
}

/*
 * Where RFC 6052 (section 2.2) has the bytes of the IPv4 address behind a prefix of 48, 56, 64 or
 * 96 bits. Of a local translator the operator's range is the prefix: nobody else knows it.
 */
static void carried_locally(const uint8_t *b, unsigned bits, uint8_t v4[4])
{
	static const uint8_t where[][4] = {
		{6, 7, 9, 10}, {7, 9, 10, 11}, {9, 10, 11, 12}, {12, 13, 14, 15}};
	const uint8_t *at = where[bits >= 96 ? 3 : bits >= 64 ? 2 : bits >= 56 ? 1 : 0];

	for (size_t i = 0; i < 4; i++)
		v4[i] = b[at[i]];
}

/* The IPv4 address that one of this class carries, into v4; false when there is none. */
static bool carried(enum egress_addr_class class, const uint8_t *b,
		    const struct egress_ranges *ranges, uint8_t v4[4])
{
	const struct addr_range *range;

	if (class == EGRESS_A_NAT64_LOCAL) {
		range = egress_ranges_find(ranges, true, b, 0);
		if (!range)
			return false;
		carried_locally(b, range->bits, v4);
		return true;
	}
	if (class == EGRESS_A_TEREDO) { /* the client's, inverted */
		for (size_t i = 0; i < 4; i++)
			v4[i] = b[12 + i] ^ 0xff;
		return true;
	}
	if (class == EGRESS_A_MAPPED || class == EGRESS_A_COMPATIBLE || class == EGRESS_A_NAT64 ||
	    class == EGRESS_A_ISATAP)
		memcpy(v4, b + 12, 4);
	else if (class == EGRESS_A_6TO4)
		memcpy(v4, b + 2, 4);
	else
		return false;
	return true;
}

/* The bits that a range must have to allow the class; over 128: none can. */
static unsigned bits_needed(enum egress_addr_class class, bool v6)
{
	if (class == EGRESS_A_UNSPECIFIED || class == EGRESS_A_MULTICAST ||
	    class == EGRESS_A_BROADCAST)
		return 129;
	if (class == EGRESS_A_METADATA)
		return v6 ? 128 : 32;
	return 0;
}

/* One address, without what it carries. */
static bool check_one(bool v6, const uint8_t *b, enum egress_addr_class class,
		      const struct egress_ranges *ranges, char why[EGRESS_WHY_MAX])
{
	char text[ADDR_RANGE_TEXT_MAX];
	const struct addr_range *range;

	snprintf(why, EGRESS_WHY_MAX, "%s", class_text[class]);
	if (class == EGRESS_A_PUBLIC || class == EGRESS_A_NAT64 || class == EGRESS_A_ISATAP)
		return true;
	range = egress_ranges_find(ranges, v6, b, bits_needed(class, v6));
	if (!range)
		return false;
	addr_range_text(range, text);
	snprintf(why, EGRESS_WHY_MAX, "%s, allowed by the range %s", class_text[class], text);
	return true;
}

/*
 * The bytes of an address that can be dialled, NULL for anything else. A zone says which link, and
 * there is none that a name could mean.
 */
static const uint8_t *dialled(const struct sockaddr *sa, struct sockaddr_in6 *copy)
{
	struct sockaddr_in in;

	/* Copied by type: sa may lie in a buffer of another one. */
	if (sa->sa_family == AF_INET) {
		memcpy(&in, sa, sizeof(in));
		memcpy(copy->sin6_addr.s6_addr, &in.sin_addr, 4);
		return copy->sin6_addr.s6_addr;
	}
	if (sa->sa_family != AF_INET6)
		return NULL;
	memcpy(copy, sa, sizeof(*copy));
	return copy->sin6_scope_id == 0 ? copy->sin6_addr.s6_addr : NULL;
}

bool egress_ranges_have(const struct egress_ranges *r, const struct sockaddr *sa)
{
	struct sockaddr_in6 copy;
	const uint8_t *b = dialled(sa, &copy);

	return b && egress_ranges_find(r, sa->sa_family == AF_INET6, b, 0);
}

bool egress_ranges_name(const struct egress_ranges *r, const struct sockaddr *sa)
{
	struct sockaddr_in6 copy;
	const uint8_t *b = dialled(sa, &copy);
	bool v6 = sa->sa_family == AF_INET6;

	return b && egress_ranges_find(r, v6, b, v6 ? 128 : 32);
}

enum egress_addr_class egress_addr_classify(const struct sockaddr *sa)
{
	struct sockaddr_in6 copy;
	const uint8_t *b = dialled(sa, &copy);

	if (!b)
		return EGRESS_A_NONE;
	return sa->sa_family == AF_INET ? classify4(b) : classify6(b);
}

bool egress_addr_carried(const struct sockaddr *sa, const struct egress_ranges *ranges,
			 struct sockaddr_in *out)
{
	struct sockaddr_in6 copy;
	const uint8_t *b = dialled(sa, &copy);
	uint8_t v4[4];

	if (!b || sa->sa_family != AF_INET6 || !carried(classify6(b), b, ranges, v4))
		return false;
	*out = (struct sockaddr_in){.sin_family = AF_INET};
	memcpy(&out->sin_addr, v4, sizeof(v4));
	return true;
}

int egress_addr_check(const struct sockaddr *sa, const struct egress_ranges *ranges,
		      char why[EGRESS_WHY_MAX])
{
	char own[EGRESS_WHY_MAX], inner[EGRESS_WHY_MAX];
	struct sockaddr_in6 copy;
	const uint8_t *b = dialled(sa, &copy);
	enum egress_addr_class class = egress_addr_classify(sa);
	bool v6 = sa->sa_family == AF_INET6, allowed;
	uint8_t v4[4];

	if (!why)
		why = own;
	if (!b) {
		snprintf(why, EGRESS_WHY_MAX, "%s", class_text[EGRESS_A_NONE]);
		return v6 ? -EACCES : -EAFNOSUPPORT;
	}
	allowed = check_one(v6, b, class, ranges, why);
	if (v6 && carried(class, b, ranges, v4)) {
		size_t n = strlen(why);

		allowed &= check_one(false, v4, classify4(v4), ranges, inner);
		snprintf(why + n, EGRESS_WHY_MAX - n, " that carries %s", inner);
	}
	return allowed ? 0 : -EACCES;
}
