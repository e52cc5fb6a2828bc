/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte queues: their bound, and what those of secrets leave behind in memory that
 * is given back. free() and realloc() look at it.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "lib/buf.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

static const char canary[] = "a-secret-of-some-length";

void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);

/* How often it was in memory that was given back. */
static unsigned int found;

static void look(const void *p)
{
	if (p && memmem(p, malloc_usable_size((void *)(uintptr_t)p), canary, sizeof(canary) - 1))
		found++;
}

void *__wrap_realloc(void *p, size_t n)
{
	look(p);
	return __real_realloc(p, n);
}

void __wrap_free(void *p)
{
	look(p);
	__real_free(p);
}

static void fill(struct buf *b, size_t times)
{
	for (size_t i = 0; i < times; i++)
		assert_int_equal(buf_append(b, canary, sizeof(canary) - 1), 0);
}

static void test_bound(void **state)
{
	struct buf b;

	(void)state;
	for (int secret = 0; secret < 2; secret++) {
		if (secret)
			buf_init_secret(&b, 1000);
		else
			buf_init(&b, 1000);
		fill(&b, 40);
		assert_int_equal(buf_append(&b, canary, 1000), -ENOBUFS);
		buf_consume(&b, 40 * (sizeof(canary) - 1) - 3);
		assert_int_equal(buf_len(&b), 3);
		assert_memory_equal(buf_data(&b), "gth", 3);
		fill(&b, 43);
		assert_memory_equal(buf_data(&b) + 3, canary, sizeof(canary) - 1);
		assert_int_equal(buf_room(&b), 1000 - 3 - 43 * (sizeof(canary) - 1));
		buf_free(&b);
		assert_int_equal(buf_len(&b), 0);
		fill(&b, 1);
		buf_free(&b);
	}
}

/* What is looked for is seen in those that are no secrets. */
static void test_others(void **state)
{
	struct buf b;

	(void)state;
	found = 0;
	buf_init(&b, 1 << 20);
	fill(&b, 10000);
	buf_free(&b);
	assert_true(found >= 5);
}

static void test_a_secret_grows(void **state)
{
	struct buf b;

	(void)state;
	found = 0;
	buf_init_secret(&b, 1 << 20);
	fill(&b, 10000);
	assert_memory_equal(buf_data(&b), canary, sizeof(canary) - 1);
	assert_int_equal(buf_len(&b), 10000 * (sizeof(canary) - 1));
	buf_free(&b);
	assert_int_equal(found, 0);
	/* It is one still. */
	fill(&b, 100);
	buf_free(&b);
	assert_int_equal(found, 0);
}

/* What was consumed is not left in front of what is there, nor behind it when that moves. */
static void test_a_secret_is_consumed(void **state)
{
	struct buf b;

	(void)state;
	buf_init_secret(&b, 1000);
	fill(&b, 20);
	buf_consume(&b, 20 * (sizeof(canary) - 1) - 4);
	assert_null(memmem(b.data, b.cap, canary, sizeof(canary) - 1));
	assert_non_null(buf_reserve(&b, b.cap - 4));
	assert_int_equal(buf_len(&b), 4);
	assert_memory_equal(buf_data(&b), "ngth", 4);
	assert_int_equal(b.start, 0);
	assert_null(memmem(b.data + 4, b.cap - 4, "ngth", 4));
	buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bound),
		cmocka_unit_test(test_others),
		cmocka_unit_test(test_a_secret_grows),
		cmocka_unit_test(test_a_secret_is_consumed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
