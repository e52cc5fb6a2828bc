/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON when each allocation in turn fails: what is returned is what was asked for, or nothing.
 */
#include "lib/json_safe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <string.h>

#include <cmocka.h>

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);

static unsigned int fail_at, calls;

void *__wrap_malloc(size_t n)
{
	return fail_at && ++calls == fail_at ? NULL : __real_malloc(n);
}

static void fail_call(unsigned int n)
{
	fail_at = n;
	calls = 0;
}

static bool has_failed(void)
{
	bool yes = fail_at && calls >= fail_at;

	fail_at = 0;
	return yes;
}

/* Strings and names beyond the first size of a buffer, escapes, numbers, and some depth. */
static char *document(void)
{
	static char text[3000];
	char filler[600];

	memset(filler, 'x', sizeof(filler) - 1);
	filler[sizeof(filler) - 1] = '\0';
	snprintf(text, sizeof(text),
		 "{\"%s\":[1,2.5,true,null,\"%s\"],\"short\":{\"a\":{\"b\":[[],{}]}},"
		 "\"text\":\"one\\ntwo\\u00e9three%s\",\"c\":-7}",
		 filler, filler, filler);
	return text;
}

static void test_loading(void **state)
{
	const char *text = document();
	json_t *whole = json_loads(text, 0, NULL);
	unsigned int n = 0;
	bool failed;

	(void)state;
	assert_non_null(whole);
	do {
		json_t *o;

		fail_call(++n);
		o = json_safe_loadb(text, strlen(text), 0, NULL);
		failed = has_failed();
		assert_int_equal(json_safe_lacked(), failed);
		assert_int_equal(o == NULL, failed);
		assert_true(!o || json_equal(o, whole));
		json_decref(o);
	} while (failed);
	assert_true(n > 20);
	json_decref(whole);
}

/* What is no JSON is not for want of memory. */
static void test_loading_nonsense(void **state)
{
	(void)state;
	fail_call(1);
	assert_null(json_safe_loadb("{", 1, 0, NULL));
	assert_true(has_failed() && json_safe_lacked());
	assert_null(json_safe_loadb("{", 1, 0, NULL));
	assert_false(json_safe_lacked());
}

static void test_text(void **state)
{
	json_t *o = json_loads(document(), 0, NULL);
	char *whole = json_dumps(o, JSON_COMPACT);
	unsigned int n = 0;
	bool failed;

	(void)state;
	do {
		char *text;

		fail_call(++n);
		text = json_text(o);
		failed = has_failed();
		assert_int_equal(text == NULL, failed);
		if (text)
			assert_string_equal(text, whole);
		free(text);
	} while (failed);
	assert_true(n > 3);
	assert_null(json_text(NULL));
	free(whole);
	json_decref(o);
}

/* Of each size around that of the first try. */
static void test_text_sizes(void **state)
{
	(void)state;
	for (size_t len = 900; len < 2100; len++) {
		json_t *o = json_array();
		char *text, *whole;
		char filler[2100];

		memset(filler, 'y', len);
		filler[len] = '\0';
		assert_int_equal(json_array_append_new(o, json_string(filler)), 0);
		text = json_text(o);
		whole = json_dumps(o, JSON_COMPACT);
		assert_string_equal(text, whole);
		free(text);
		free(whole);
		text = json_text_with(o, 0);
		assert_int_equal(strlen(text), len + 4);
		free(text);
		json_decref(o);
	}
}

static void test_clone(void **state)
{
	json_t *o = json_loads(document(), 0, NULL);
	unsigned int n = 0;
	bool failed;

	(void)state;
	do {
		json_t *copy;

		fail_call(++n);
		copy = json_clone(o);
		failed = has_failed();
		assert_int_equal(copy == NULL, failed);
		assert_true(!copy || (copy != o && json_equal(copy, o)));
		json_decref(copy);
	} while (failed);
	assert_true(n > 10);
	json_decref(o);
}

static void test_few_values(void **state)
{
	static const struct {
		const char *text;
		size_t n;
	} cases[] = {
		{"", 1},
		{"1", 1},
		{"[]", 1},
		{"[ \n]", 1},
		{"{ }", 1},
		{"[", 1},
		{"[1]", 2},
		{"[1, 2]", 3},
		{"{\"a\": 1}", 2},
		{"{\"a\": [{}, {}], \"b\": null}", 5},
		{"\"[,,{{\"", 1},
		{"[\"a,\\\",[\", \"\\\\\", \"\\\\\\\"{\"]", 4},
		{"\"never ends [[[", 1},
		{"\"\\", 1},
		{"\"\\\"", 1},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		size_t len = strlen(cases[i].text);
		/* Ends where the memory does: what is read beyond is seen. */
		char *text = malloc(len ? len : 1);

		assert_non_null(text);
		memcpy(text, cases[i].text, len);
		assert_true(json_few_values(text, len, cases[i].n));
		assert_false(json_few_values(text, len, cases[i].n - 1));
		free(text);
	}
	assert_true(json_few_values(NULL, 0, 1));
}

/* Nothing is built of what has too many; and that is no want of memory. */
static void test_load_few(void **state)
{
	const char *text = "{\"a\": [{}, {}], \"b\": null}";
	json_t *o = json_safe_load_few(text, strlen(text), 5, 0);

	(void)state;
	assert_int_equal(json_object_size(o), 2);
	json_decref(o);
	assert_null(json_safe_load_few(text, strlen(text), 4, 0));
	assert_false(json_safe_lacked());
	assert_int_equal(json_safe_fault(), -EPROTO);
	assert_null(json_safe_load_few(NULL, 0, 4, 0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_loading),  cmocka_unit_test(test_loading_nonsense),
		cmocka_unit_test(test_text),     cmocka_unit_test(test_text_sizes),
		cmocka_unit_test(test_clone),    cmocka_unit_test(test_few_values),
		cmocka_unit_test(test_load_few),
	};

	json_safe_begin();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
