/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Normal form of names: what becomes what, and what is refused with which reason. The refused ones
 * are the ways in which allowlists of others were passed by, or a name could mean two things.
 */
#include "unit.h"

#include "egress/names.h"
#include "egress/rules.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* A name of the literal, with NUL bytes that it may have. */
#define S(literal) (literal), sizeof(literal) - 1

static void becomes(const char *name, const char *normal)
{
	char out[EGRESS_HOST_MAX + 1], again[EGRESS_HOST_MAX + 1];
	struct err err = {0};

	if (egress_host_normal(name, strlen(name), out, &err) < 0)
		fail_msg("%s: refused: %s", name, err.msg);
	assert_string_equal(out, normal);
	assert_int_equal(err.num, 0);
	assert_int_equal(egress_host_normal(out, strlen(out), again, &err), 0);
	assert_string_equal(again, normal);
}

static void refused(const char *name, size_t len, const char *reason)
{
	char out[EGRESS_HOST_MAX + 1] = "left";
	struct err err = {0};

	if (egress_host_normal(name, len, out, &err) != -EINVAL)
		fail_msg("%s: not refused, but %s", name, out);
	assert_string_equal(out, "");
	assert_int_equal(err.num, EINVAL);
	if (!strstr(err.msg, reason))
		fail_msg("%s: the sentence is: %s", name, err.msg);
	/* The sentence is ASCII on one line, whatever the name was. */
	for (const char *p = err.msg; *p; p++)
		assert_in_range(*p, 0x20, 0x7e);
	assert_int_equal(egress_host_normal(name, len, out, NULL), -EINVAL);
}

static void test_ascii(void **state)
{
	(void)state;
	becomes("example.com", "example.com");
	becomes("API.Example.COM", "api.example.com");
	becomes("a.b.c.d.e.example.com", "a.b.c.d.e.example.com");
	becomes("1.example.com", "1.example.com");
	becomes("0x7f.example.com", "0x7f.example.com");
	becomes("127.0.0.1.example.com", "127.0.0.1.example.com");
	becomes("example.c0m", "example.c0m");
	becomes("example.0xg", "example.0xg");
	becomes("example.1a", "example.1a");
	becomes("r3---sn-4g5e.example.com", "r3---sn-4g5e.example.com");
	becomes("my_bucket.example.com", "my_bucket.example.com");
	becomes("mylocalhost.com", "mylocalhost.com");
	becomes("localhost.example.com", "localhost.example.com");
	becomes("egress.example.com", "egress.example.com");
	becomes("a.myegress", "a.myegress");
}

static void test_unicode(void **state)
{
	(void)state;
	becomes("b\u00fccher.example", "xn--bcher-kva.example");
	becomes("B\u00dcCHER.example", "xn--bcher-kva.example");
	becomes("bu\u0308cher.example", "xn--bcher-kva.example");
	becomes("BU\u0308CHER.example", "xn--bcher-kva.example");
	becomes("xn--bcher-kva.example", "xn--bcher-kva.example");
	becomes("XN--BCHER-KVA.Example", "xn--bcher-kva.example");
	becomes("a.b\u00fccher.b\u00fccher", "a.xn--bcher-kva.xn--bcher-kva");
	/* IDNA2008, not 2003: sharp s and final sigma stay what they are. */
	becomes("stra\u00dfe.de", "xn--strae-oqa.de");
	becomes("\u03b2\u03cc\u03bb\u03bf\u03c2.com", "xn--nxasmm1c.com");
	becomes("\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444", "xn--e1afmkfd.xn--p1ai");
	becomes("\u041f\u0420\u0418\u041c\u0415\u0420.\u0420\u0424", "xn--e1afmkfd.xn--p1ai");
	becomes("\u4f8b\u3048.\u30c6\u30b9\u30c8", "xn--r8jz45g.xn--zckzah");
	/* A zero-width joiner where the script asks for it. */
	becomes("\u0915\u094d\u200d\u0937.com", "xn--11b2ezcw70k.com");
}

static void test_not_ascii(void **state)
{
	static const char *const look_alike[] = {
		"ex\uff41mple.com",       /* full-width letter */
		"\uff11\uff12\uff17.com", /* full-width digits */
		"\u212aelvin.com",        /* Kelvin sign */
		"example\u3002com",       /* dots that browsers take */
		"example\uff0ecom",
		"example\uff61com",
		"www.example\u3002com",
		"ex\u00adample.com", /* soft hyphen */
		"ex\u200bample.com", /* zero-width space */
		"ex\u2060ample.com", /* word joiner */
		"ex\ufeffample.com", /* byte order mark */
		"ex\ufe0fample.com", /* variation selector */
		"\U0001d41eexample.com",
		"\ufb01sh.com", /* a ligature */
		"\u2177.com",
		"\u24d4xample.com",
	};
	static const char *const invalid[] = {
		"ex\u200cample.com", /* joiners without a reason */
		"ex\u200dample.com",
		"ex\u202eample.com", /* right-to-left override */
		"ex\u2066ample.com",
		"ex\xc2\x80"
		"ample.com", /* C1 control */
		"ex\xc2\x85"
		"ample.com",
		"ex\u2028ample.com",
		"b\u00fcch\u200ber.com",
		"b\u00fcch\u00ader.com",
		"b\u00fccher\u00ad.com", /* what vanishes at the end */
		"b\u00fccher\u200b.com",
		"B\u00dcCHER\u00ad.com",
		"b\u00fc\uff43her.com", /* full-width within a real one */
		"b\u00fc\u3002cher.com",
		"\u0308ber.com", /* begins with a combining mark */
		"\u2603.net",
		"\U0001f4a9.la",
		"\u0130stanbul.com", /* becomes two characters */
		"STRA\u1e9eE.de",    /* the same */
		"\u05d0a.com",       /* both directions in one label */
		"a\u2024b.com",      /* one dot leader */
		"a\u2044b.com",
		"xn--\u00fc.com",
		"ab--\u00fc.com",
		"\u00e4\u00f6--x.com",
		"-\u00fc.com",
		"\u00fc-.com",
		"\u00fc*.com",
		"\u00fc/.com",
		"\u00fc@a.com",
		"\u00fc a.com",
		"\u00fc%.com",
		"\uffff.com",
		"\ue000.com",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(look_alike); i++)
		refused(look_alike[i], strlen(look_alike[i]), "label that");
	for (size_t i = 0; i < ARRAY_SIZE(invalid); i++)
		refused(invalid[i], strlen(invalid[i]), "label that");
	refused(S("ex\uff41mple.com"), "only looks like ASCII");
	refused(S("example\u3002com"), "only looks like ASCII");
	refused(S("\U0001f4a9.la"), "not valid in IDNA2008");
	refused(S("b\xfc"
		  "cher.com"),
		"UTF-8");
	refused(S("ex\xc0\xaemple.com"), "UTF-8"); /* an overlong dot */
	refused(S("ex\xed\xa0\x80.com"), "UTF-8"); /* a surrogate */
	refused(S("b\xc3"), "UTF-8");
}

static void test_alabels(void **state)
{
	static const char *const bad[] = {
		"xn--.com",                /* of nothing */
		"xn--a.com",               /* not punycode of anything */
		"xn--abc-.com",            /* of ASCII */
		"xn--example-.com",        /* the same */
		"xn--ls8h.la",             /* emoji: IDNA2003 */
		"xn--n3h.net",             /* a snowman */
		"xn--xn---epa.com",        /* of an A-label */
		"xn--bcher-kva\u00fc.com", /* mixed */
		"xn--strasse-.de",
		"xn--0.com",
		"xn--99999999.com",
		"xn--BCHER-KVA8445FOA.com",
		"xn--u-ccb.com", /* decomposed: not NFC */
		"xn---.com",
		"xn--\u00e9.com",
		"xn----eha.com", /* decodes to one that begins with a hyphen */
		"a.xn--a.com",
	};

	(void)state;
	becomes("xn--strae-oqa.de", "xn--strae-oqa.de");
	becomes("xn--fa-hia.de", "xn--fa-hia.de");
	becomes("a.xn--p1ai", "a.xn--p1ai");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		refused(bad[i], strlen(bad[i]), "label");
	refused(S("xn--ls8h.la"), "not the normal form of any");
}

static void test_addresses(void **state)
{
	static const char *const v4[] = {
		"127.0.0.1",
		"127.1",
		"127.0.1",
		"2130706433",
		"0x7f000001",
		"0X7F000001",
		"017700000001",
		"0177.0.0.1",
		"0x7f.0.0.1",
		"0x7f.0x0.0x0.0x1",
		"127.0.0.0x1",
		"127.0.0.0x",
		"0",
		"0.0.0.0",
		"00000000127.0.0.1",
		"169.254.169.254",
		"2852039166",
		"0xa9fea9fe",
		"0251.0376.0251.0376",
		"256.256.256.256",
		"1.2.3.4.5",
		"1.2.3",
		"example.1",
		"example.08",
		"example.0x1f",
		"99999999999999999999",
	};
	static const char *const v6[] = {
		"::1",
		"[::1]",
		"::",
		"[::ffff:127.0.0.1]",
		"::ffff:127.0.0.1",
		"[::1%25lo]",
		"fe80::1%lo",
		"[example.com]",
		"0:0:0:0:0:0:0:1",
		"[::1",
		"::1]",
		"[v1.fe80::a]",
		"2001:db8::1",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(v4); i++)
		refused(v4[i], strlen(v4[i]), "is an address");
	for (size_t i = 0; i < ARRAY_SIZE(v6); i++)
		refused(v6[i], strlen(v6[i]), "is an address");
	/* Digits of other scripts: full-width is refused, the rest does not change the end. */
	refused(S("127.0.0.\uff11"), "label");
	refused(S("\u06f1\u06f2\u06f7.0.0.1"), "is an address");
	refused(S("127\u30020\u30020\u30021"), "label");
}

static void test_bytes(void **state)
{
	(void)state;
	refused(S(""), "is empty");
	refused(S("."), "ends in a dot");
	refused(S(".."), "ends in a dot");
	refused(S("example.com."), "ends in a dot");
	refused(S("example.com.."), "ends in a dot");
	refused(S("127.0.0.1."), "ends in a dot");
	refused(S(".example.com"), "empty label");
	refused(S("a..example.com"), "empty label");
	refused(S("evil.com\0.example.com"), "NUL");
	refused(S("example.com\0"), "NUL");
	refused(S("\0example.com"), "NUL");
	refused(S("\0"), "NUL");
	refused(S("example.com\r\n"), "control character");
	refused(S("example.com\r\nHost: evil.com"), "control character");
	refused(S("example\t.com"), "control character");
	refused(S("example.com\x7f"), "control character");
	refused(S("example.com:443"), "has a port");
	refused(S("evil.com/.example.com"), "no name has");
	refused(S("evil.com\\.example.com"), "no name has");
	refused(S("evil.com#.example.com"), "no name has");
	refused(S("evil.com?.example.com"), "no name has");
	refused(S("user@example.com"), "no name has");
	refused(S(" example.com"), "no name has");
	refused(S("example.com "), "no name has");
	refused(S("example%2ecom.org"), "no name has");
	refused(S("%00.example.com"), "no name has");
	refused(S("*.example.com"), "no name has");
	refused(S("a,b.example.com"), "no name has");
	refused(S("\"a\".example.com"), "no name has");
	refused(S("-a.example.com"), "hyphen");
	refused(S("a-.example.com"), "hyphen");
	refused(S("a.-"), "hyphen");
}

static void test_own_names(void **state)
{
	(void)state;
	refused(S("localhost"), "the machine itself");
	refused(S("LOCALHOST"), "the machine itself");
	refused(S("a.localhost"), "the machine itself");
	refused(S("egress"), "the proxy's own");
	refused(S("api.example.com.egress"), "the proxy's own");
	refused(S("api.example.com.Egress"), "the proxy's own");
	refused(S("intranet"), "single word");
	refused(S("pypi"), "single word");
	refused(S("b\u00fccher"), "single word");
}

/* The longest that is taken, and one more, of labels and names, written in both ways. */
static void test_lengths(void **state)
{
	char label[65], name[400];

	(void)state;
	memset(label, 'a', 64);
	label[64] = 0;
	snprintf(name, sizeof(name), "%s.com", label + 1);
	becomes(name, name);
	snprintf(name, sizeof(name), "%s.com", label);
	refused(name, strlen(name), "63 bytes");

	/* 3 * 64 + 61 = 253 */
	snprintf(name, sizeof(name), "%s.%s.%s.%s", label + 1, label + 1, label + 1, label + 3);
	assert_int_equal(strlen(name), EGRESS_HOST_MAX);
	becomes(name, name);
	snprintf(name, sizeof(name), "%s.%s.%s.%s", label + 1, label + 1, label + 1, label + 2);
	refused(name, strlen(name), "253 bytes");
	snprintf(name, sizeof(name), "%s.%s.%s.%s.a", label + 1, label + 1, label + 1, label + 5);
	becomes(name, name);
	snprintf(name, sizeof(name), "%s.%s.%s.%s.%s", label + 1, label + 1, label + 1, label + 1,
		 label + 1);
	refused(name, strlen(name), "253 bytes");

	/* Short as it is written, too long as an A-label; and the other way round. */
	memset(label, 'a', 60);
	snprintf(label + 58, 3, "\u00fc");
	snprintf(name, sizeof(name), "%s.com", label);
	refused(name, strlen(name), "label");
	for (size_t i = 0; i < 40; i++)
		memcpy(name + 3 * i, "\u3042", 3);
	memcpy(name + 120, ".com", 5);
	becomes(name, "xn--l8jaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.com");
}

/* Megabytes are refused without being read by anybody slow. */
static void test_huge(void **state)
{
	size_t len = 1 << 20;
	char *name = malloc(len);

	(void)state;
	assert_non_null(name);
	memset(name, 'a', len);
	refused(name, len, "253 bytes");
	memset(name, '.', len);
	refused(name, len, "253 bytes");
	free(name);
}

static void test_quote(void **state)
{
	char out[EGRESS_QUOTE_MAX], longest[300];

	(void)state;
	egress_quote(out, S("a\"b\\\n\0\u00fc\U0010ffff\xff"));
	assert_string_equal(out, "\"a\\\"b\\\\\\x{0a}\\x{00}\\u{fc}\\u{10ffff}\\x{ff}\"");
	egress_quote(out, S(""));
	assert_string_equal(out, "\"\"");
	memset(longest, 'a', sizeof(longest));
	egress_quote(out, longest, sizeof(longest));
	assert_true(strlen(out) < sizeof(out));
	assert_string_equal(out + strlen(out) - 4, "...\"");
	for (size_t i = 0; i + 4 <= sizeof(longest); i += 4)
		memcpy(longest + i, "\U0010ffff", 4);
	for (size_t n = 0; n <= sizeof(longest); n++) {
		egress_quote(out, longest, n);
		assert_true(strlen(out) < sizeof(out));
		assert_int_equal(out[strlen(out) - 1], '"');
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ascii),     cmocka_unit_test(test_unicode),
		cmocka_unit_test(test_not_ascii), cmocka_unit_test(test_alabels),
		cmocka_unit_test(test_addresses), cmocka_unit_test(test_bytes),
		cmocka_unit_test(test_own_names), cmocka_unit_test(test_lengths),
		cmocka_unit_test(test_huge),      cmocka_unit_test(test_quote),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
