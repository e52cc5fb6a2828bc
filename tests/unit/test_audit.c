/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The audit's file while no file can be opened, or written: what is there already stays, and what
 * is lost is said.
 */
#define _GNU_SOURCE
#include "daemon/egress/audit.h"
#include "tree.h"
#include "unit.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* Descriptors that may be opened: all, or none beside those that are open. */
static void descriptors(bool some)
{
	struct rlimit l;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &l), 0);
	l.rlim_cur = some ? l.rlim_max : 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &l), 0);
}

static void write_line(struct audit *a, int i)
{
	char text[16];

	snprintf(text, sizeof(text), "line %04d", i);
	audit_write(a, text, strlen(text), 1);
}

/* The first line of the file, by its number, or -1: there is none. */
static int first_of(const struct audit *a, int old)
{
	char path[sizeof(a->path) + 16];
	int i = -1;
	FILE *f;

	snprintf(path, sizeof(path), old ? "%s.%d" : "%s", a->path, old);
	f = fopen(path, "re");
	if (f && fscanf(f, "line %d", &i) != 1)
		i = -2;
	if (f)
		fclose(f);
	return i;
}

/* Two lines a file, and as many files as there may be. */
static void begin(struct audit *a, char *dir)
{
	struct err err = {0};

	strcpy(dir, "/tmp/podflare-audit-XXXXXX");
	assert_non_null(mkdtemp(dir));
	assert_int_equal(audit_open(a, dir, &err), 0);
	a->max = 20;
	for (int i = 0; i < 2 * (AUDIT_OLD + 1); i++)
		write_line(a, i);
	for (int old = 0; old <= AUDIT_OLD; old++)
		assert_int_equal(first_of(a, old), 2 * (AUDIT_OLD - old));
}

/* The file was made way for, and the next cannot be opened. */
static void test_the_next_cannot_be_opened(void **state)
{
	struct audit a;
	char dir[64];

	(void)state;
	begin(&a, dir);
	descriptors(false);
	for (int i = 0; i < 10; i++)
		write_line(&a, 100 + i);
	descriptors(true);
	assert_int_equal(a.untold, 10);
	a.untold = 0; /* saying that takes more than a file here */
	write_line(&a, 200);
	write_line(&a, 201);
	assert_int_equal(first_of(&a, 0), 200);
	for (int old = 1; old <= AUDIT_OLD; old++)
		assert_int_equal(first_of(&a, old), 2 * (AUDIT_OLD + 1 - old));
	audit_close(&a);
	assert_int_equal(tree_remove(dir), 0);
}

/* It is the same one that is gone on with, when it has room. */
static void test_it_has_room(void **state)
{
	struct audit a;
	char dir[64];

	(void)state;
	begin(&a, dir);
	write_line(&a, 100);
	close(a.fd);
	a.fd = -1;
	write_line(&a, 101);
	assert_int_equal(first_of(&a, 0), 100);
	assert_int_equal(a.size, 20);
	audit_close(&a);
	assert_int_equal(tree_remove(dir), 0);
}

static void limit_files(rlim_t bytes)
{
	struct rlimit l;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &l), 0);
	l.rlim_cur = bytes ? bytes : l.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &l), 0);
}

/* All of its file. */
static void read_all(const struct audit *a, char *text, size_t size)
{
	FILE *f = fopen(a->path, "re");

	assert_non_null(f);
	text[fread(text, 1, size - 1, f)] = '\0';
	fclose(f);
}

/* Lines of ten bytes; the third is cut off in the middle, and those behind it find no room. */
static void test_what_is_lost_is_said(void **state)
{
	static const char begin_of[] = "line 0000\nline 0001\nline \n"
				       "{\"sandbox\":null,\"type\":\"lost\",\"time\":\"20";
	char dir[64] = "/tmp/podflare-audit-XXXXXX", text[1000];
	struct err err = {0};
	struct audit a;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	assert_non_null(mkdtemp(dir));
	assert_int_equal(audit_open(&a, dir, &err), 0);
	limit_files(25);
	for (int i = 0; i < 5; i++)
		write_line(&a, i);
	/* One that stands for more, and one that there was no memory for. */
	audit_write(&a, "seven", 5, 7);
	audit_write(&a, NULL, 0, 1);
	assert_int_equal(a.lost, 11);
	limit_files(0);
	write_line(&a, 9);
	read_all(&a, text, sizeof(text));
	assert_memory_equal(text, begin_of, strlen(begin_of));
	assert_non_null(strstr(text, "Z\",\"n\":11}\nline 0009\n"));
	assert_int_equal(a.size, strlen(text));
	/* Once. */
	write_line(&a, 10);
	read_all(&a, text, sizeof(text));
	assert_non_null(strstr(text, "}\nline 0009\nline 0010\n"));
	assert_int_equal(a.lost, 11);
	/* Nothing comes any more. */
	audit_write(&a, NULL, 0, 1);
	audit_close(&a);
	read_all(&a, text, sizeof(text));
	assert_non_null(strstr(text, "line 0010\n{\"sandbox\":null,\"type\":\"lost\""));
	assert_string_equal(text + strlen(text) - 7, "\"n\":1}\n");
	assert_int_equal(tree_remove(dir), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_next_cannot_be_opened),
		cmocka_unit_test(test_it_has_room),
		cmocka_unit_test(test_what_is_lost_is_said),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
