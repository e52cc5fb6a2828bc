/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a text may be shown on a terminal.
 */
#include "unit.h"

#include "lib/plain.h"

#include <stdio.h>
#include <string.h>

static void becomes(const char *text, const char *keep, const char *wanted)
{
	char s[128];

	snprintf(s, sizeof(s), "%s", text);
	plain_text(s, '?', keep);
	assert_string_equal(s, wanted);
}

static void test_controls(void **state)
{
	(void)state;
	becomes("", "", "");
	becomes("a\x1b[31mb\tc\x7f", "", "a?[31mb?c?");
	becomes("a\nb\tc\r", "\n", "a\nb?c?");
	/* C1: CSI, NEL, in UTF-8 and as a byte that is none. */
	becomes("a\xc2\x9b"
		"31mb\xc2\x85"
		"c\xc2\x80\xc2\x9f",
		"", "a?31mb?c??");
	becomes("a\x9b"
		"31m",
		"", "a?31m");
	becomes("\xc2\xa0\xc3\xa9", "", "\xc2\xa0\xc3\xa9");
}

static void test_direction_and_lines(void **state)
{
	(void)state;
	becomes("a\xe2\x80\xae"
		"b\xe2\x80\xaa\xe2\x81\xa6\xe2\x81\xa9\xe2\x80\x8f\xd8\x9c",
		"", "a?b?????");
	becomes("a\xe2\x80\xa8\xe2\x80\xa9", "", "a??");
	becomes("\xe2\x80\x93\xe2\x81\xaa\xd8\x9b\xe2\x80\x8d", "",
		"\xe2\x80\x93\xe2\x81\xaa\xd8\x9b\xe2\x80\x8d");
}

static void test_what_is_no_utf8(void **state)
{
	(void)state;
	becomes("a\xff\xfe"
		"b",
		"", "a??b");
	becomes("a\xe2\x80", "", "a?"); /* cut off */
	becomes("a\xf0\x9f\x98\x80"
		"b",
		"",
		"a\xf0\x9f\x98\x80"
		"b");
	becomes("\xed\xa0\x80", "", "???");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_controls),
		cmocka_unit_test(test_direction_and_lines),
		cmocka_unit_test(test_what_is_no_utf8),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
