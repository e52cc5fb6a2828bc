/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Classes of addresses, each range at both of its ends and just outside; what carries an IPv4
 * address; and the operator's ranges.
 */
#include "unit.h"

#include "egress/addr.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

static struct sockaddr_storage address(const char *text)
{
	struct sockaddr_storage ss = {0};
	struct sockaddr_in *in = (struct sockaddr_in *)&ss;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&ss;

	if (inet_pton(AF_INET, text, &in->sin_addr) == 1)
		ss.ss_family = AF_INET;
	else if (inet_pton(AF_INET6, text, &in6->sin6_addr) == 1)
		ss.ss_family = AF_INET6;
	else
		fail_msg("%s is no address", text);
	return ss;
}

static int check(const char *text, const struct egress_ranges *ranges, char *why)
{
	struct sockaddr_storage ss = address(text);

	return egress_addr_check((struct sockaddr *)&ss, ranges, why);
}

static struct egress_ranges *ranges_of(const char *json)
{
	json_t *list = json_loads(json, JSON_ALLOW_NUL, NULL);
	struct egress_ranges *r = NULL;
	struct err err = {0};

	assert_non_null(list);
	if (egress_ranges_parse(&r, list, &err) < 0)
		fail_msg("%s: %s", json, err.msg);
	json_decref(list);
	return r;
}

static void is(const char *text, enum egress_addr_class class)
{
	struct sockaddr_storage ss = address(text);
	enum egress_addr_class found = egress_addr_classify((struct sockaddr *)&ss);
	char why[EGRESS_WHY_MAX];

	if (found != class)
		fail_msg("%s is %s, not %s", text, egress_addr_class_text(found),
			 egress_addr_class_text(class));
	if (class == EGRESS_A_NAT64 || class == EGRESS_A_ISATAP)
		return; /* below */
	assert_int_equal(check(text, NULL, why), class == EGRESS_A_PUBLIC ? 0 : -EACCES);
	assert_int_equal(check(text, NULL, NULL), class == EGRESS_A_PUBLIC ? 0 : -EACCES);
	assert_memory_equal(why, egress_addr_class_text(class),
			    strlen(egress_addr_class_text(class)));
}

static void test_v4(void **state)
{
	static const struct {
		const char *before, *first, *last, *after; /* public outside, or NULL */
		enum egress_addr_class class;
	} rows[] = {
		{NULL, "0.0.0.1", "0.255.255.255", "1.0.0.0", EGRESS_A_THIS_NETWORK},
		{"9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0", EGRESS_A_PRIVATE},
		{"100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0", EGRESS_A_SHARED},
		{"126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0", EGRESS_A_LOOPBACK},
		{"169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0",
		 EGRESS_A_LINK_LOCAL},
		{"172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0", EGRESS_A_PRIVATE},
		{"191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0", EGRESS_A_PROTOCOL},
		{"192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0", EGRESS_A_DOCUMENTATION},
		{"192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0", EGRESS_A_6TO4},
		{"192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0",
		 EGRESS_A_PRIVATE},
		{"198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0",
		 EGRESS_A_BENCHMARK},
		{"198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0",
		 EGRESS_A_DOCUMENTATION},
		{"203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0",
		 EGRESS_A_DOCUMENTATION},
		{"223.255.255.255", "224.0.0.0", "239.255.255.255", NULL, EGRESS_A_MULTICAST},
		{NULL, "240.0.0.0", "255.255.255.254", NULL, EGRESS_A_RESERVED},
		{NULL, "0.0.0.0", "0.0.0.0", NULL, EGRESS_A_UNSPECIFIED},
		{NULL, "255.255.255.255", "255.255.255.255", NULL, EGRESS_A_BROADCAST},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		if (rows[i].before)
			is(rows[i].before, EGRESS_A_PUBLIC);
		is(rows[i].first, rows[i].class);
		is(rows[i].last, rows[i].class);
		if (rows[i].after)
			is(rows[i].after, EGRESS_A_PUBLIC);
	}
	is("127.0.0.1", EGRESS_A_LOOPBACK);
	is("1.1.1.1", EGRESS_A_PUBLIC);
	is("8.8.8.8", EGRESS_A_PUBLIC);
}

static void test_v6(void **state)
{
	static const struct {
		const char *text;
		enum egress_addr_class class;
	} rows[] = {
		{"::", EGRESS_A_UNSPECIFIED},
		{"::1", EGRESS_A_LOOPBACK},
		{"::2", EGRESS_A_COMPATIBLE},
		{"::1.1.1.1", EGRESS_A_COMPATIBLE},
		{"::ffff:1.1.1.1", EGRESS_A_MAPPED},
		{"::ffff:127.0.0.1", EGRESS_A_MAPPED},
		{"::ffff:0:127.0.0.1", EGRESS_A_MAPPED},
		{"0:0:0:0:1::", EGRESS_A_RESERVED},
		{"64:ff9b::1.1.1.1", EGRESS_A_NAT64},
		{"64:ff9b::1:0:0", EGRESS_A_RESERVED},
		{"64:ff9b:1::", EGRESS_A_NAT64_LOCAL},
		{"64:ff9b:1:ffff:ffff:ffff:ffff:ffff", EGRESS_A_NAT64_LOCAL},
		{"64:ff9b:2::", EGRESS_A_RESERVED},
		{"100::", EGRESS_A_DISCARD},
		{"100::ffff:ffff:ffff:ffff", EGRESS_A_DISCARD},
		{"100:0:0:1::1", EGRESS_A_DISCARD},
		{"100:0:0:2::1", EGRESS_A_RESERVED},
		{"1fff:ffff::", EGRESS_A_RESERVED},
		{"2000::1", EGRESS_A_PUBLIC},
		{"2000:ffff::", EGRESS_A_PUBLIC},
		{"2001::", EGRESS_A_TEREDO},
		{"2001:0:ffff::1", EGRESS_A_TEREDO},
		{"2001:1::1", EGRESS_A_PROTOCOL},
		{"2001:2::1", EGRESS_A_BENCHMARK},
		{"2001:2:0:ffff::1", EGRESS_A_BENCHMARK},
		{"2001:2:1::1", EGRESS_A_PROTOCOL},
		{"2001:10::", EGRESS_A_ORCHID},
		{"2001:2f:ffff::", EGRESS_A_ORCHID},
		{"2001:1ff::", EGRESS_A_PROTOCOL},
		{"2001:200::", EGRESS_A_PUBLIC},
		{"2001:db7:ffff::", EGRESS_A_PUBLIC},
		{"2001:db8::", EGRESS_A_DOCUMENTATION},
		{"2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", EGRESS_A_DOCUMENTATION},
		{"2001:db9::", EGRESS_A_PUBLIC},
		{"2001:ffff::", EGRESS_A_PUBLIC},
		{"2002::", EGRESS_A_6TO4},
		{"2002:101:101::1", EGRESS_A_6TO4},
		{"2002:ffff::", EGRESS_A_6TO4},
		{"2003::", EGRESS_A_PUBLIC},
		{"2606:4700::1111", EGRESS_A_PUBLIC},
		{"2a00::5efe:1.1.1.1", EGRESS_A_ISATAP},
		{"2a00::200:5efe:1.1.1.1", EGRESS_A_ISATAP},
		{"2a00::5eff:1.1.1.1", EGRESS_A_PUBLIC},
		{"3ffe:ffff::", EGRESS_A_PUBLIC},
		{"3fff::", EGRESS_A_DOCUMENTATION},
		{"3fff:fff:ffff::", EGRESS_A_DOCUMENTATION},
		{"3fff:1000::", EGRESS_A_PUBLIC},
		{"4000::", EGRESS_A_RESERVED},
		{"5f00::1", EGRESS_A_RESERVED},
		{"fbff:ffff::", EGRESS_A_RESERVED},
		{"fc00::", EGRESS_A_UNIQUE_LOCAL},
		{"fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", EGRESS_A_UNIQUE_LOCAL},
		{"fe00::", EGRESS_A_RESERVED},
		{"fe80::1", EGRESS_A_LINK_LOCAL},
		{"febf:ffff::", EGRESS_A_LINK_LOCAL},
		{"fec0::", EGRESS_A_SITE_LOCAL},
		{"feff:ffff::", EGRESS_A_SITE_LOCAL},
		{"ff00::", EGRESS_A_MULTICAST},
		{"ff02::1", EGRESS_A_MULTICAST},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", EGRESS_A_MULTICAST},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		is(rows[i].text, rows[i].class);
}

static const char *const metadata[] = {
	"169.254.169.254", "169.254.169.253", "169.254.170.2",   "169.254.170.23", "169.254.42.42",
	"169.254.0.23",    "168.63.129.16",   "100.100.100.200", "192.0.0.192",    "fd00:ec2::254",
	"fd00:ec2::23",    "fd00:ec2::253",   "fd20:ce::254",    "fd00:42::42",
};

/* Only a range of that address alone opens one. */
static void test_metadata(void **state)
{
	struct egress_ranges *wide = ranges_of("[\"0.0.0.0/0\", \"::/0\", \"169.254.0.0/16\", "
					       "\"169.254.169.254/31\", \"fd00:ec2::254/127\"]");
	char why[EGRESS_WHY_MAX], json[128];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(metadata); i++) {
		struct egress_ranges *exact;

		is(metadata[i], EGRESS_A_METADATA);
		assert_int_equal(check(metadata[i], wide, why), -EACCES);
		assert_string_equal(why, "the address of a cloud's metadata service");
		snprintf(json, sizeof(json), "[\"%s/%d\"]", metadata[i],
			 strchr(metadata[i], ':') ? 128 : 32);
		exact = ranges_of(json);
		assert_int_equal(check(metadata[i], exact, why), 0);
		egress_ranges_free(exact);
	}
	assert_int_equal(check("169.254.169.255", wide, why), 0);
	assert_int_equal(check("::ffff:169.254.169.254", wide, why), -EACCES);
	assert_int_equal(check("64:ff9b::169.254.169.254", wide, why), -EACCES);
	egress_ranges_free(wide);
}

static void test_carried(void **state)
{
	char why[EGRESS_WHY_MAX];

	(void)state;
	/* These are as good as what they carry. */
	assert_int_equal(check("64:ff9b::8.8.8.8", NULL, why), 0);
	assert_string_equal(why, "a NAT64 address that carries a public address");
	assert_int_equal(check("64:ff9b::127.0.0.1", NULL, why), -EACCES);
	assert_string_equal(why, "a NAT64 address that carries a loopback address");
	assert_int_equal(check("64:ff9b::10.0.0.1", NULL, why), -EACCES);
	assert_int_equal(check("64:ff9b::169.254.169.254", NULL, why), -EACCES);
	assert_int_equal(check("64:ff9b::", NULL, why), -EACCES);
	assert_int_equal(check("2a00::5efe:8.8.8.8", NULL, why), 0);
	assert_int_equal(check("2a00::5efe:10.0.0.1", NULL, why), -EACCES);
	assert_int_equal(check("2a00::200:5efe:10.0.0.1", NULL, why), -EACCES);
	/* These never, even when it is public. */
	assert_int_equal(check("::ffff:8.8.8.8", NULL, why), -EACCES);
	assert_string_equal(why, "an IPv4-mapped address that carries a public address");
	assert_int_equal(check("::8.8.8.8", NULL, why), -EACCES);
	assert_int_equal(check("2002:808:808::1", NULL, why), -EACCES);
	assert_string_equal(why, "a 6to4 address that carries a public address");
}

static void test_carried_ranges(void **state)
{
	struct egress_ranges *v4 = ranges_of("[\"10.0.0.0/8\"]");
	struct egress_ranges *v6 = ranges_of("[\"::/0\"]");
	struct egress_ranges *both = ranges_of("[\"10.0.0.0/8\", \"::ffff:0:0/96\"]");
	char why[EGRESS_WHY_MAX];

	(void)state;
	assert_int_equal(check("64:ff9b::10.0.0.1", v4, why), 0);
	assert_int_equal(check("2a00::5efe:10.0.0.1", v4, why), 0);
	assert_int_equal(check("::ffff:10.0.0.1", v4, why), -EACCES);
	assert_int_equal(check("::ffff:10.0.0.1", v6, why), -EACCES);
	assert_int_equal(check("::ffff:127.0.0.1", v6, why), -EACCES);
	assert_int_equal(check("::127.0.0.1", v6, why), -EACCES);
	assert_int_equal(check("2002:7f00:1::", v6, why), -EACCES);
	assert_int_equal(check("2002:808:808::", v6, why), 0);
	assert_int_equal(check("64:ff9b::127.0.0.1", v6, why), -EACCES);
	assert_int_equal(check("::ffff:8.8.8.8", v6, why), 0);
	assert_int_equal(check("::ffff:10.0.0.1", both, why), 0);
	assert_string_equal(why, "an IPv4-mapped address, allowed by the range ::ffff:0.0.0.0/96 "
				 "that carries a private address, allowed by the range 10.0.0.0/8");
	assert_int_equal(check("::ffff:127.0.0.1", both, why), -EACCES);
	egress_ranges_free(v4);
	egress_ranges_free(v6);
	egress_ranges_free(both);
}

/* The length of the range that allows a local translator says where the IPv4 address is. */
static void test_carried_by_local_translators(void **state)
{
	static const struct {
		const char *range, *bad, *good;
	} rows[] = {
		{"64:ff9b:1::/48", "64:ff9b:1:a00:0:100::", "64:ff9b:1:808:8:800::"},
		{"64:ff9b:1:ff00::/56", "64:ff9b:1:ff0a:0:1::", "64:ff9b:1:ff08:8:808::"},
		{"64:ff9b:1:808::/64", "64:ff9b:1:808:7f:0:100:0", "64:ff9b:1:808:8:808:800:0"},
		{"64:ff9b:1::/96", "64:ff9b:1::169.254.169.254", "64:ff9b:1::8.8.8.8"},
		{"64:ff9b:1::a00:1/128", "64:ff9b:1::10.0.0.1", NULL},
		{"2001::/32", "2001:0:808:808:0:ffff:80ff:fffe", "2001:0:808:808:0:ffff:f7f7:f7f7"},
	};
	char text[64], why[EGRESS_WHY_MAX];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct egress_ranges *r;

		snprintf(text, sizeof(text), "[\"%s\"]", rows[i].range);
		r = ranges_of(text);
		if (check(rows[i].bad, r, why) != -EACCES)
			fail_msg("%s, with %s: %s", rows[i].bad, rows[i].range, why);
		if (rows[i].good && check(rows[i].good, r, why) != 0)
			fail_msg("%s, with %s: %s", rows[i].good, rows[i].range, why);
		egress_ranges_free(r);
	}
}

static void test_ranges(void **state)
{
	struct egress_ranges *r = ranges_of("[\"10.0.2.2/32\", \"127.0.0.0/8\", \"127.0.0.1/32\", "
					    "\"172.16.4.0/22\", \"fd00:1:2::/48\", \"::1/128\"]");
	struct egress_ranges *all = ranges_of("[\"0.0.0.0/0\", \"::/0\"]");
	struct egress_ranges *none = ranges_of("[]");
	char why[EGRESS_WHY_MAX];

	(void)state;
	assert_int_equal(check("10.0.2.2", r, why), 0);
	assert_string_equal(why, "a private address, allowed by the range 10.0.2.2/32");
	assert_int_equal(check("10.0.2.1", r, why), -EACCES);
	assert_int_equal(check("10.0.2.3", r, why), -EACCES);
	assert_int_equal(check("127.0.0.1", r, why), 0); /* the narrowest is named */
	assert_string_equal(why, "a loopback address, allowed by the range 127.0.0.1/32");
	assert_int_equal(check("127.255.255.255", r, why), 0);
	assert_int_equal(check("172.16.3.255", r, why), -EACCES);
	assert_int_equal(check("172.16.4.0", r, why), 0);
	assert_int_equal(check("172.16.7.255", r, why), 0);
	assert_int_equal(check("172.16.8.0", r, why), -EACCES);
	assert_int_equal(check("fd00:1:2:ffff::1", r, why), 0);
	assert_int_equal(check("fd00:1:3::1", r, why), -EACCES);
	assert_int_equal(check("::1", r, why), 0);
	/* They add to what is public, and take nothing away. */
	assert_int_equal(check("1.1.1.1", r, why), 0);
	assert_string_equal(why, "a public address");
	assert_int_equal(check("2606:4700::1111", none, why), 0);
	assert_int_equal(check("10.0.2.2", none, why), -EACCES);
	/* The bytes of one family do not count for the other. */
	assert_int_equal(check("a00:202::", r, why), -EACCES);
	/* No destinations, whatever is allowed. */
	assert_int_equal(check("0.0.0.0", all, why), -EACCES);
	assert_int_equal(check("224.0.0.1", all, why), -EACCES);
	assert_int_equal(check("255.255.255.255", all, why), -EACCES);
	assert_int_equal(check("::", all, why), -EACCES);
	assert_int_equal(check("ff02::1", all, why), -EACCES);
	assert_int_equal(check("::ffff:0.0.0.0", all, why), -EACCES);
	assert_int_equal(check("10.1.2.3", all, why), 0);
	assert_int_equal(check("240.0.0.1", all, why), 0);
	assert_int_equal(check("fe80::1", all, why), 0);
	egress_ranges_free(r);
	egress_ranges_free(all);
	egress_ranges_free(none);
	egress_ranges_free(NULL);
}

static void test_ranges_refused(void **state)
{
	static const char *const bad[] = {
		"10.0.0.0",
		"10.0.0.0/",
		"10.0.0.0/33",
		"10.0.0.0/-1",
		"10.0.0.0/+8",
		"10.0.0.0/08",
		"10.0.0.0/8 ",
		" 10.0.0.0/8",
		"10.0.0.0/8/8",
		"10.0.0.1/8",
		"10.0.0.0/0",
		"10.0.0/8",
		"10/8",
		"010.0.0.0/8",
		"0x0a.0.0.0/8",
		"167772160/8",
		"10.0.0.0/255.0.0.0",
		"10.0.0.0/a",
		"10.0.0.256/32",
		"",
		"/",
		"/8",
		"*",
		"example.com/8",
		"fd00::/129",
		"fd00::1/64",
		"fe80::1%lo/128",
		"[::1]/128",
		"::1",
		"::g/128",
		"::/1280",
		"10.0.0.0/8\\u0000",
		"10.0.0.0\\u0000/8",
		"::ffff:10.0.0.0/8",
		"0000:0000:0000:0000:0000:0000:255.255.255.2555/128",
	};
	char json[256];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct egress_ranges *r = NULL;
		struct err err = {0};
		json_t *list;

		snprintf(json, sizeof(json), "[\"192.0.2.0/24\", \"%s\"]", bad[i]);
		list = json_loads(json, JSON_ALLOW_NUL, NULL);
		assert_non_null(list);
		if (egress_ranges_parse(&r, list, &err) != -EINVAL)
			fail_msg("%s: not refused", bad[i]);
		assert_null(r);
		assert_memory_equal(err.msg, "range 2 (\"", 10);
		json_decref(list);
	}
}

static void test_ranges_shape(void **state)
{
	static const struct {
		const char *json, *sentence;
	} rows[] = {
		{"{}", "the ranges are not an array"},
		{"null", "the ranges are not an array"},
		{"\"10.0.0.0/8\"", "the ranges are not an array"},
		{"[10]", "range 1: is not a string"},
		{"[null]", "range 1: is not a string"},
		{"[[\"10.0.0.0/8\"]]", "range 1: is not a string"},
		{"[\"10.0.0.1/8\"]", "range 1 (\"10.0.0.1/8\"): has bits set behind its length"},
	};
	json_t *many = json_array();
	struct egress_ranges *r = NULL;
	struct err err = {0};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		json_t *list = json_loads(rows[i].json, JSON_DECODE_ANY, NULL);

		assert_non_null(list);
		assert_int_equal(egress_ranges_parse(&r, list, &err), -EINVAL);
		assert_string_equal(err.msg, rows[i].sentence);
		json_decref(list);
	}
	assert_int_equal(egress_ranges_parse(&r, NULL, NULL), -EINVAL);
	for (size_t i = 0; i < EGRESS_RANGES_MAX; i++)
		json_array_append_new(many, json_string("10.0.0.0/8"));
	assert_int_equal(egress_ranges_parse(&r, many, &err), 0);
	egress_ranges_free(r);
	json_array_append_new(many, json_string("10.0.0.0/8"));
	assert_int_equal(egress_ranges_parse(&r, many, &err), -EINVAL);
	json_decref(many);
}

/* What is no address, or one of a link. */
/* What an address is named by: a range of it alone, and none that has others as well. */
static void test_ranges_name(void **state)
{
	struct egress_ranges *r =
		ranges_of("[\"10.0.0.0/8\", \"10.0.2.2/32\", \"2a00::/16\", \"2a00::5/128\"]");
	static const struct {
		const char *text;
		bool have, name;
	} all[] = {
		{"10.0.2.2", true, true},    {"10.0.2.15", true, false}, {"11.0.2.2", false, false},
		{"2a00::5", true, true},     {"2a00::6", true, false},   {"2a01::5", false, false},
		{"::a00:202", false, false},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		struct sockaddr_storage ss = address(all[i].text);
		const struct sockaddr *sa = (const struct sockaddr *)&ss;

		assert_int_equal(egress_ranges_have(r, sa), all[i].have);
		assert_int_equal(egress_ranges_name(r, sa), all[i].name);
		assert_false(egress_ranges_name(NULL, sa));
	}
	egress_ranges_free(r);
}

static void test_families(void **state)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = "/run/x"};
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	struct sockaddr_storage ss = address("2606:4700::1111");
	struct egress_ranges *all = ranges_of("[\"0.0.0.0/0\", \"::/0\"]");
	char why[EGRESS_WHY_MAX];

	(void)state;
	assert_int_equal(egress_addr_check((struct sockaddr *)&un, all, why), -EAFNOSUPPORT);
	assert_string_equal(why, "not an address that can be dialled");
	assert_int_equal(egress_addr_check(&none, all, why), -EAFNOSUPPORT);
	assert_int_equal(egress_addr_classify(&none), EGRESS_A_NONE);
	assert_int_equal(egress_addr_check((struct sockaddr *)&ss, all, why), 0);
	((struct sockaddr_in6 *)&ss)->sin6_scope_id = 1;
	assert_int_equal(egress_addr_check((struct sockaddr *)&ss, all, why), -EACCES);
	egress_ranges_free(all);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_v4),
		cmocka_unit_test(test_v6),
		cmocka_unit_test(test_metadata),
		cmocka_unit_test(test_carried),
		cmocka_unit_test(test_carried_ranges),
		cmocka_unit_test(test_carried_by_local_translators),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_ranges_refused),
		cmocka_unit_test(test_ranges_shape),
		cmocka_unit_test(test_ranges_name),
		cmocka_unit_test(test_families),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
