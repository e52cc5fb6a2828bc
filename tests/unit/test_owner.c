/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of owners, and who may see what.
 */
#include "unit.h"

#include "daemon/owner.h"

#include <string.h>

#define ARG(s) (char *)(uintptr_t)(s)

static void test_names(void **state)
{
	struct config c = {.nkeys = 3, .keys = {ARG("abc"), ARG("abcd"), ARG("abc")}};
	struct config turned = {.nkeys = 2, .keys = {ARG("abcd"), ARG("abc")}};
	uint8_t salt[OWNER_SALT_LEN] = {0};
	struct owners o, p;

	(void)state;
	owners_init(&o, &c, salt);
	/* The first half of SHA-256 of 32 zero bytes and "abc". */
	assert_string_equal(o.name[0], "365aa7d8f7f9402c4b9434502b4cc89d");
	assert_string_not_equal(o.name[0], o.name[1]);
	assert_string_equal(o.name[0], o.name[2]);
	assert_string_equal(o.name[3], "");
	owners_init(&p, &turned, salt);
	assert_string_equal(p.name[1], o.name[0]);
	assert_string_equal(p.name[0], o.name[1]);
	salt[OWNER_SALT_LEN - 1] = 1;
	owners_init(&p, &c, salt);
	assert_string_not_equal(p.name[0], o.name[0]);
}

static void test_may(void **state)
{
	(void)state;
	assert_true(owner_may("a", "a"));
	assert_false(owner_may("a", "b"));
	assert_false(owner_may("a", "aa"));
	/* What was made without keys is no key's; who asks without them has all. */
	assert_false(owner_may("a", OWNER_ANY));
	assert_true(owner_may(OWNER_ANY, "a"));
	assert_true(owner_may(OWNER_ANY, OWNER_ANY));
	/* Nobody has nothing. */
	assert_false(owner_may(NULL, "a"));
	assert_false(owner_may(NULL, OWNER_ANY));
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_names),
					   cmocka_unit_test(test_may)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
