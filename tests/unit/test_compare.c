/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of changes: what is taken and what refused, and the comparison of two.
 */
#include "unit.h"

#include "daemon/changes.h"
#include "daemon/compare.h"
#include "daemon/limits.h"
#include "lib/base64.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- lists ------------------------------------------------------------------------------- */

static int feed(struct changes *c, const char *text, size_t step)
{
	size_t len = strlen(text);
	int rc = 0;

	changes_init(c);
	for (size_t i = 0; i < len && rc == 0; i += step) {
		size_t n = len - i < step ? len - i : step;

		rc = changes_feed(c, (const uint8_t *)text + i, n);
	}
	return rc == 0 ? changes_end(c) : rc;
}

#define STAT "\"size\":5,\"mode\":420,\"ino\":7,\"ctime_ns\":1,\"mtime_ns\":2"

static void test_good_lines(void **state)
{
	static const char text[] =
		"{\"path\":\"/t\",\"type\":\"dir\"," STAT "}\n"
		"{\"path\":\"/t-a\",\"type\":\"opaque_dir\"," STAT "}\n"
		"{\"path\":\"/t/b\",\"type\":\"file\"," STAT ",\"below\":null}\n"
		"{\"path\":\"/t/l\",\"type\":\"link\"," STAT ",\"link\":\"x\",\"more\":[1]}\n"
		"{\"path_base64\":\"L3Qv/y8=\",\"type\":\"gone\",\"below\":"
		"{\"type\":\"file\",\"size\":9,\"mode\":384}}\n";
	struct changes c;

	(void)state;
	/* The path in base64 ends with a slash: refused; without it the rest is right. */
	assert_int_equal(feed(&c, text, 1000), -EPROTO);
	changes_free(&c);
	for (size_t step = 1; step < 200; step += 13) {
		char good[sizeof(text)];

		memcpy(good, text, sizeof(text));
		memcpy(strstr(good, "L3Qv/y8="), "L3Qv/w==", 8);
		assert_int_equal(feed(&c, good, step), 0);
		assert_int_equal(c.n, 5);
		assert_string_equal(c.all[0].path, "/t");
		assert_string_equal(c.all[1].path, "/t-a");
		assert_true(c.all[1].opaque);
		assert_string_equal(c.all[2].path, "/t/b");
		assert_string_equal(c.all[3].path, "/t/l");
		assert_string_equal(c.all[3].link, "x");
		assert_string_equal(c.all[4].path, "/t/\xff");
		assert_int_equal(c.all[4].now.type, CHANGE_NONE);
		assert_int_equal(c.all[4].below.size, 9);
		changes_free(&c);
	}
}

static void test_bad_lines(void **state)
{
	static const char *const bad[] = {
		"x\n",
		"\n",
		"[]\n",
		"{}\n",
		"{\"path\":\"/a\",\"type\":\"file\"," STAT "}", /* no newline */
		"{\"path\":\"a\",\"type\":\"gone\"}\n",
		"{\"path\":\"\",\"type\":\"gone\"}\n",
		"{\"path\":\"/a/\",\"type\":\"gone\"}\n",
		"{\"path\":\"/a//b\",\"type\":\"gone\"}\n",
		"{\"path\":5,\"type\":\"gone\"}\n",
		"{\"path\":\"/a\",\"path_base64\":\"L2E=\",\"type\":\"gone\"}\n",
		"{\"path_base64\":\"L2\",\"type\":\"gone\"}\n",
		"{\"path_base64\":\"L2EA\",\"type\":\"gone\"}\n", /* NUL inside */
		"{\"path\":\"/a\\u0000\",\"type\":\"gone\"}\n",
		"{\"path\":\"/a\"}\n",
		"{\"path\":\"/a\",\"type\":\"socket\"," STAT "}\n",
		"{\"path\":\"/a\",\"type\":\"file\"}\n",
		"{\"path\":\"/"
		"a\",\"type\":\"file\",\"size\":-1,\"mode\":0,\"ino\":0,\"ctime_ns\":0,"
		"\"mtime_ns\":0}\n",
		("{\"path\":\"/a\",\"type\":\"file\",\"size\":1,\"mode\":4096,\"ino\":0,"
		 "\"ctime_ns\":0,\"mtime_ns\":0}\n"),
		"{\"path\":\"/a\",\"type\":\"gone\",\"below\":{\"type\":\"gone\"}}\n",
		"{\"path\":\"/a\",\"type\":\"gone\",\"below\":5}\n",
		"{\"path\":\"/a\",\"type\":\"gone\"}\n{\"path\":\"/a\",\"type\":\"gone\"}\n",
		"{\"path\":\"/a\",\"path\":\"/b\",\"type\":\"gone\"}\n",
		/* Not in order. */
		"{\"path\":\"/b\",\"type\":\"gone\"}\n{\"path\":\"/a\",\"type\":\"gone\"}\n",
		"{\"path\":\"/a/c\",\"type\":\"gone\"}\n{\"path\":\"/a-b\",\"type\":\"gone\"}\n",
	};
	struct changes c;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (feed(&c, bad[i], 17) != -EPROTO)
			fail_msg("line %zu was taken: %s", i, bad[i]);
		changes_free(&c);
	}
}

static void test_too_much(void **state)
{
	struct changes c;
	char line[96];
	int rc = 0;
	uint8_t *endless = calloc(1, LIMIT_CHANGE_LINE);

	(void)state;
	changes_init(&c);
	for (unsigned int i = 0; i <= LIMIT_CHANGES && rc == 0; i++) {
		int n = snprintf(line, sizeof(line), "{\"path\":\"/%06u\",\"type\":\"gone\"}\n", i);

		rc = changes_feed(&c, (const uint8_t *)line, (size_t)n);
	}
	assert_int_equal(rc, -E2BIG);
	assert_int_equal(c.n, LIMIT_CHANGES);
	changes_free(&c);
	/* A line without an end, and many bytes that are no entry. */
	changes_init(&c);
	memset(endless, ' ', LIMIT_CHANGE_LINE);
	assert_int_equal(changes_feed(&c, endless, LIMIT_CHANGE_LINE), 0);
	assert_int_equal(changes_feed(&c, endless, 1), -EPROTO);
	changes_free(&c);
	free(endless);
}

/* A guest tells of what was asked for, and of nothing else. */
static void test_paths_asked_for(void **state)
{
	static const struct {
		const char *asked, *path;
		int rc;
	} cases[] = {
		{"/", "/a", 0},          {"/", "/", 0},
		{"//", "/a/b", 0},       {"/a", "/a", 0},
		{"/a", "/a/b", 0},       {"/a//b/", "/a/b", 0},
		{"//a/b", "/a/b/c", 0},  {"/a", "/ab", -EPROTO},
		{"/a", "/", -EPROTO},    {"/a/b", "/a", -EPROTO},
		{"/ab", "/a", -EPROTO},  {"/a/b", "/a/bc", -EPROTO},
		{"/a", "/b/a", -EPROTO}, {"/a/b/", "/a", -EPROTO},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		json_t *paths = json_pack("[s, s]", "/never/this", cases[i].asked);
		struct changes c;
		char line[96];
		int n = snprintf(line, sizeof(line), "{\"path\":\"%s\",\"type\":\"gone\"}\n",
				 cases[i].path);

		changes_init(&c);
		c.paths = paths;
		assert_int_equal(changes_feed(&c, (const uint8_t *)line, (size_t)n), cases[i].rc);
		changes_free(&c);
		json_decref(paths);
	}
}

/* One entry of many values takes long to build: it is refused before. */
static void test_many_values(void **state)
{
	static char line[40000];
	struct changes c;
	size_t n = (size_t)sprintf(line, "{\"path\":\"/a\",\"type\":\"gone\",\"x\":[0");

	(void)state;
	for (int i = 0; i < 70; i++)
		n += (size_t)sprintf(line + n, ",{}");
	n += (size_t)sprintf(line + n, "]}\n");
	changes_init(&c);
	assert_int_equal(changes_feed(&c, (const uint8_t *)line, n), -EPROTO);
	changes_free(&c);
}

static void test_base64(void **state)
{
	uint8_t out[64];

	(void)state;
	assert_int_equal(base64_decode(out, "", 0), 0);
	assert_int_equal(base64_decode(out, "Zm9vYg==", 8), 4);
	assert_memory_equal(out, "foob", 4);
	assert_int_equal(base64_decode(out, "Zm9vYmE=", 8), 5);
	assert_int_equal(base64_decode(out, "+/+/", 4), 3);
	assert_int_equal(base64_decode(out, "Zm9", 3), -EINVAL);
	assert_int_equal(base64_decode(out, "Z===", 4), -EINVAL);
	assert_int_equal(base64_decode(out, "====", 4), -EINVAL);
	assert_int_equal(base64_decode(out, "Zg==Zg==", 8), -EINVAL);
	assert_int_equal(base64_decode(out, "Zm 9", 4), -EINVAL);
}

/* --- comparison -------------------------------------------------------------------------- */

/* An entry: "path type size mode stamp [below-type size mode]"; stamp is ino and times. */
static void build(struct changes *c, const char *const *lines)
{
	changes_init(c);
	for (; *lines; lines++) {
		char path[64], type[16], below[16] = "", text[512], extra[128] = "";
		int size, mode, stamp, bsize = 0, bmode = 0, n;

		assert_true(sscanf(*lines, "%63s %15s %d %o %d %15s %d %o", path, type, &size,
				   (unsigned int *)&mode, &stamp, below, &bsize,
				   (unsigned int *)&bmode) >= 5);
		if (below[0])
			snprintf(extra, sizeof(extra),
				 ",\"below\":{\"type\":\"%s\",\"size\":%d,\"mode\":%d}", below,
				 bsize, bmode);
		n = snprintf(text, sizeof(text),
			     "{\"path\":\"%s\",\"type\":\"%s\",\"size\":%d,\"mode\":%d,\"ino\":%d,"
			     "\"ctime_ns\":%d,\"mtime_ns\":%d,\"link\":\"to%d\"%s}\n",
			     path, type, size, mode, stamp, stamp, stamp, size, extra);
		assert_int_equal(changes_feed(c, (const uint8_t *)text, (size_t)n), 0);
	}
	assert_int_equal(changes_end(c), 0);
}

static int compare(struct comparison *out, const struct changes *a, const struct changes *b)
{
	int rc = compare_begin(out, a, b);

	for (rc = rc ? rc : 1; rc == 1;)
		rc = compare_step(out);
	return rc;
}

#define LIST(...) ((const char *const[]){__VA_ARGS__ __VA_OPT__(, ) NULL})

/* Checks the outcome: "+path", "-path", "*path" (modified), "?path" (by content). */
static void check(const char *const *a, const char *const *b, const char *const *want)
{
	static const char marks[] = {
		[COMPARE_ADDED] = '+',
		[COMPARE_REMOVED] = '-',
		[COMPARE_MODIFIED] = '*',
		[COMPARE_CONTENT] = '?',
	};
	struct changes ca, cb;
	struct comparison got;
	size_t n = 0;

	build(&ca, a);
	build(&cb, b);
	assert_int_equal(compare(&got, &ca, &cb), 0);
	for (; want[n]; n++) {
		assert_true(n < got.n);
		assert_string_equal(got.all[n].path, want[n] + 1);
		assert_int_equal(marks[got.all[n].kind], want[n][0]);
	}
	assert_int_equal(got.n, n);
	compare_free(&got);
	changes_free(&ca);
	changes_free(&cb);
}

static void test_plain(void **state)
{
	(void)state;
	check(LIST(), LIST(), LIST());
	check(LIST("/t dir 0 755 1", "/t/a file 5 644 2"), LIST("/t dir 0 755 9"), LIST("-/t/a"));
	check(LIST(), LIST("/t/a file 5 644 2"), LIST("+/t/a"));
	/* The same entry since they were one; the same to look at, written apart; another size. */
	check(LIST("/a file 5 644 2", "/b file 5 644 2", "/c file 5 644 2", "/d file 5 644 2"),
	      LIST("/a file 5 644 2", "/b file 5 644 3", "/c file 6 644 3", "/d file 5 600 3"),
	      LIST("?/b", "*/c", "*/d"));
	/* Types; a directory's time and size say nothing, its mode does. */
	check(LIST("/a file 5 644 2", "/b dir 5 755 2", "/c dir 5 755 2", "/d link 5 777 2",
		   "/e link 5 777 2", "/f other 0 644 2"),
	      LIST("/a dir 5 644 3", "/b dir 6 755 3", "/c dir 5 700 3", "/d link 5 777 3",
		   "/e link 6 777 3", "/f other 0 600 3"),
	      LIST("*/a", "*/c", "*/e", "*/f"));
}

static void test_below(void **state)
{
	(void)state;
	/* One side has the image's: changed, removed, only touched. */
	check(LIST(), LIST("/a file 6 644 2 file 5 644"), LIST("*/a"));
	check(LIST(), LIST("/a gone 0 0 0 file 5 644"), LIST("-/a"));
	check(LIST("/a gone 0 0 0 file 5 644"), LIST(), LIST("+/a"));
	check(LIST("/a gone 0 0 0 file 5 644"), LIST("/a gone 0 0 0 file 5 644"), LIST());
	check(LIST("/a gone 0 0 0 file 5 644"), LIST("/a file 5 644 3 file 5 644"), LIST("+/a"));
	check(LIST(), LIST("/a file 5 644 2 file 5 644"), LIST("?/a"));
	check(LIST(), LIST("/a dir 0 755 2 dir 0 755"), LIST());
	check(LIST(), LIST("/a dir 0 700 2 dir 0 755"), LIST("*/a"));
	/* Removed and nothing was there: no difference. */
	check(LIST(), LIST("/a gone 0 0 0"), LIST());
	check(LIST(), LIST("/a link 5 777 3 link 5 777"), LIST("*/a"));
}

static void test_directories_that_hide(void **state)
{
	(void)state;
	/* /d was removed in A: what B changed below is B's alone, whatever the image had. */
	check(LIST("/d gone 0 0 0 dir 0 755"),
	      LIST("/d dir 0 755 2 dir 0 755", "/d/x file 5 644 2 file 5 644"),
	      LIST("+/d", "+/d/x"));
	/* Replaced by a file. */
	check(LIST("/d file 5 644 2 dir 0 755"),
	      LIST("/d dir 0 755 2 dir 0 755", "/d/x file 5 644 2 file 5 644"),
	      LIST("*/d", "+/d/x"));
	/* Made anew: the image's x is hidden in A, y was made there; -ab is no part of it. */
	check(LIST("/d opaque_dir 0 755 2 dir 0 755", "/d/e dir 0 755 2 dir 0 755",
		   "/d/y file 5 644 2"),
	      LIST("/d-ab file 6 644 2 file 5 644", "/d/e/x gone 0 0 0 file 5 644",
		   "/d/z file 5 644 3 file 4 644", "/d0 file 6 644 2 file 5 644"),
	      LIST("*/d", "*/d-ab", "-/d/y", "+/d/z", "*/d0"));
	/* Each of two whose names begin alike hides its own, and what comes between neither. */
	check(LIST("/d gone 0 0 0 dir 0 755", "/d- gone 0 0 0 dir 0 755"),
	      LIST("/d-/x file 6 644 2 file 5 644", "/d-b file 6 644 2 file 5 644",
		   "/d/x file 6 644 2 file 5 644", "/dx file 6 644 2 file 5 644"),
	      LIST("+/d", "+/d-", "+/d-/x", "*/d-b", "+/d/x", "*/dx"));
	check(LIST("/ opaque_dir 0 755 2 dir 0 755"), LIST("/x file 6 644 2 file 5 644"),
	      LIST("*/", "+/x"));
	/* In both. */
	check(LIST("/d opaque_dir 0 755 2 dir 0 755"), LIST("/d opaque_dir 0 755 3 dir 0 755"),
	      LIST());
	/* Made anew where the image had nothing: the same as made. */
	check(LIST("/d opaque_dir 0 755 2"), LIST("/d dir 0 755 3"), LIST());
}

/* As many steps as it takes, of a bounded number of paths each. */
static void test_steps(void **state)
{
	struct changes c;
	struct comparison got;
	char line[96];
	size_t before = 0;
	int rc, steps = 0;

	(void)state;
	changes_init(&c);
	for (unsigned int i = 0; i < 10000; i++) {
		int n = snprintf(line, sizeof(line),
				 "{\"path\":\"/%06u\",\"type\":\"file\"," STAT "}\n", i);

		assert_int_equal(changes_feed(&c, (const uint8_t *)line, (size_t)n), 0);
	}
	assert_int_equal(compare_begin(&got, &(struct changes){0}, &c), 0);
	while ((rc = compare_step(&got)) == 1) {
		assert_true(got.n - before <= 1000);
		before = got.n;
		steps++;
	}
	assert_int_equal(rc, 0);
	assert_true(steps >= 10);
	assert_int_equal(got.n, 10000);
	assert_int_equal(compare_step(&got), 0);
	compare_free(&got);
	/* Left in the middle. */
	assert_int_equal(compare_begin(&got, &(struct changes){0}, &c), 0);
	assert_int_equal(compare_step(&got), 1);
	compare_free(&got);
	changes_free(&c);
}

/* "/", "/-", "/--"...: as long a stack as there can be, and nothing is below anything. */
static void test_names_that_begin_alike(void **state)
{
	char path[LIMIT_PATH + 1] = "/", line[LIMIT_PATH + 128];
	struct changes c;
	struct comparison got;

	(void)state;
	changes_init(&c);
	for (unsigned int len = 1; len <= LIMIT_PATH; path[len++] = '-') {
		int n = snprintf(line, sizeof(line), "{\"path\":\"%s\",\"type\":\"gone\"}\n", path);

		assert_int_equal(changes_feed(&c, (const uint8_t *)line, (size_t)n), 0);
		if (len == LIMIT_PATH)
			break;
		path[len + 1] = '\0';
	}
	assert_int_equal(c.n, LIMIT_PATH);
	assert_int_equal(compare(&got, &c, &c), 0);
	assert_int_equal(got.n, 0);
	compare_free(&got);
	changes_free(&c);
}

static void test_deep(void **state)
{
	char path[LIMIT_PATH + 1] = "", line[LIMIT_PATH + 128];
	struct changes c;
	struct comparison got;
	unsigned int depth = 0;

	(void)state;
	changes_init(&c);
	while (strlen(path) + 2 <= LIMIT_PATH) {
		int n;

		strcat(path, "/a");
		n = snprintf(line, sizeof(line), "{\"path\":\"%s\",\"type\":\"dir\"," STAT "}\n",
			     path);
		assert_int_equal(changes_feed(&c, (const uint8_t *)line, (size_t)n), 0);
		depth++;
	}
	assert_int_equal(changes_end(&c), 0);
	assert_int_equal(compare(&got, &c, &(struct changes){0}), 0);
	assert_int_equal(got.n, depth);
	compare_free(&got);
	changes_free(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good_lines),
		cmocka_unit_test(test_bad_lines),
		cmocka_unit_test(test_too_much),
		cmocka_unit_test(test_paths_asked_for),
		cmocka_unit_test(test_many_values),
		cmocka_unit_test(test_base64),
		cmocka_unit_test(test_plain),
		cmocka_unit_test(test_below),
		cmocka_unit_test(test_directories_that_hide),
		cmocka_unit_test(test_deep),
		cmocka_unit_test(test_steps),
		cmocka_unit_test(test_names_that_begin_alike),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
