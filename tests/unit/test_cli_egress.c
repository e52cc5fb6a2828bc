/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the command line knows of egress: the operator's file as far as `podflare
 * serve` looks at it, and words and answers of `podflare policy test`.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "cli/egressfile.h"
#include "cli/policy.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct place {
	char dir[32], file[64];
};

static int setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));

	strcpy(p->dir, "/tmp/cli-egress.XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->file, sizeof(p->file), "%s/egress.json", p->dir);
	unsetenv("PODFLARE_EGRESS_CONFIG");
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct place *p = *state;

	unsetenv("PODFLARE_EGRESS_CONFIG");
	unlink(p->file);
	rmdir(p->dir);
	free(p);
	return 0;
}

static void write_file(const struct place *p, const char *text, size_t len)
{
	FILE *out = fopen(p->file, "w");

	assert_non_null(out);
	assert_int_equal(fwrite(text, 1, len, out), len);
	fclose(out);
}

static void test_no_file(void **state)
{
	struct egressfile f;

	(void)state;
	assert_int_equal(egressfile_read(&f, NULL, NULL), 0);
	assert_string_equal(f.path, "");
	assert_true(f.out && !f.data && !f.problem.num);
	setenv("PODFLARE_EGRESS_CONFIG", "", 1);
	assert_int_equal(egressfile_read(&f, "", NULL), 0);
	assert_true(f.out && !f.path[0]);
	egressfile_free(&f);
}

/* Whether anything may go out, and what is wrong with the file ("": nothing). */
static void test_what_it_says(void **state)
{
	static const struct {
		const char *text;
		bool out;
		const char *problem;
	} cases[] = {
		{"{}", true, ""},
		{"{\"enabled\": true}", true, ""},
		{"{\"default\": [\"pypi\"]}", true, ""},
		/* What the daemon will refuse is not looked at here. */
		{"{\"enabled\": true, \"ceiling\": 7}", true, ""},
		{"{\"enabled\": false}", false, ""},
		{"{\"enabled\": false, \"default\": [\"pypi\"]}", false, ""},
		{"{\"enabled\": null}", false, "must be true or false"},
		{"{\"enabled\": \"false\"}", false, "must be true or false"},
		{"{\"enabled\": 0}", false, "must be true or false"},
		{"{\"enabled\": false, \"enabled\": true}", false, "is not JSON: line 1: dupl"},
		{"", false, "is not JSON"},
		{"{\"enabled\": true", false, "is not JSON"},
		{"{} x", false, "is not JSON"},
		{"[]", false, "is not a JSON object"},
		{"{\"a\": \"\xff\"}", false, "is not JSON"},
	};
	struct place *p = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct egressfile f;

		write_file(p, cases[i].text, strlen(cases[i].text));
		assert_int_equal(egressfile_read(&f, p->file, NULL), 0);
		assert_int_equal(f.out, cases[i].out);
		assert_int_equal(f.problem.num != 0, cases[i].problem[0] != '\0');
		if (cases[i].problem[0]) {
			assert_non_null(strstr(f.problem.msg, p->file));
			assert_non_null(strstr(f.problem.msg, cases[i].problem));
		}
		/* The bytes as they are: who gets them finds the same fault. */
		assert_non_null(f.data);
		assert_int_equal(f.len, strlen(cases[i].text));
		assert_memory_equal(f.data, cases[i].text, f.len);
		assert_string_equal(f.path, p->file);
		egressfile_free(&f);
	}
}

static void test_file_that_cannot_be_read(void **state)
{
	struct place *p = *state;
	static char big[EGRESSFILE_MAX + 1];
	char name[2 * PATH_MAX];
	struct egressfile f;
	struct err err = {0};

	assert_int_equal(egressfile_read(&f, p->file, NULL), 0);
	assert_true(!f.out && !f.data && f.problem.num == ENOENT);
	assert_string_equal(f.path, p->file);
	assert_non_null(strstr(f.problem.msg, p->file));
	egressfile_free(&f);
	assert_int_equal(egressfile_read(&f, p->dir, NULL), 0); /* a directory */
	assert_true(!f.out && !f.data && f.problem.num);
	egressfile_free(&f);
	memset(big, ' ', sizeof(big));
	write_file(p, big, sizeof(big));
	assert_int_equal(egressfile_read(&f, p->file, NULL), 0);
	assert_true(!f.out && !f.data && f.problem.num == EFBIG);
	egressfile_free(&f);
	/* A name that cannot be handed on must not look like none. */
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(egressfile_read(&f, name, &err), -ENAMETOOLONG);
	assert_true(!f.out && err.num == ENAMETOOLONG);
	egressfile_free(&f);
}

static void test_where_it_is(void **state)
{
	char cwd[PATH_MAX], *real;
	struct place *p = *state;
	struct egressfile f;

	write_file(p, "{\"enabled\": false}", 18);
	setenv("PODFLARE_EGRESS_CONFIG", p->file, 1);
	assert_int_equal(egressfile_read(&f, NULL, NULL), 0);
	assert_true(f.data && !f.out);
	egressfile_free(&f);
	/* The option goes before the environment. */
	assert_int_equal(egressfile_read(&f, "/nowhere", NULL), 0);
	assert_string_equal(f.path, "/nowhere");
	egressfile_free(&f);
	/* Relative to where this program was started. */
	assert_non_null(getcwd(cwd, sizeof(cwd)));
	assert_int_equal(chdir(p->dir), 0);
	assert_int_equal(egressfile_read(&f, "egress.json", NULL), 0);
	assert_int_equal(chdir(cwd), 0);
	real = realpath(f.path, NULL);
	assert_string_equal(real, p->file);
	assert_true(f.path[0] == '/' && f.data);
	free(real);
	egressfile_free(&f);
}

/* --- podflare policy test --- */

static void test_targets(void **state)
{
	static const struct {
		const char *target, *host;
		int port; /* 0: none */
	} cases[] = {
		{"api.example.com", "api.example.com", 0},
		{"api.example.com:8443", "api.example.com", 8443},
		{"API.Example.COM.:1", "API.Example.COM.", 1},
		{"127.0.0.1:80", "127.0.0.1", 80},
		{"0x7f.1", "0x7f.1", 0},
		{"::1", "::1", 0},
		{"[::1]", "[::1]", 0},
		{"[::1]:443", "[::1]", 443},
		{"::ffff:127.0.0.1", "::ffff:127.0.0.1", 0},
		{"m\xc3\xbcnchen.example:65535", "m\xc3\xbcnchen.example", 65535},
		{"a b\r\n", "a b\r\n", 0},
	};
	static const char *const bad[] = {"",       ":443",
					  "a:0",    "a:65536",
					  "a:",     "a:8x",
					  "a:-1",   "\xff",
					  "[::1]:", "https://a.example/simple"};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		json_t *body = json_object();

		assert_int_equal(policy_split(body, cases[i].target, NULL), 0);
		assert_string_equal(json_string_value(json_object_get(body, "host")),
				    cases[i].host);
		assert_int_equal(json_integer_value(json_object_get(body, "port")), cases[i].port);
		assert_int_equal(json_object_size(body), cases[i].port ? 2 : 1);
		json_decref(body);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		json_t *body = json_object();
		struct err err = {0};

		assert_int_equal(policy_split(body, bad[i], &err), -EINVAL);
		assert_true(err.msg[0]);
		json_decref(body);
	}
}

static void test_entries(void **state)
{
	json_t *body = json_object(), *list;
	struct err err = {0};

	(void)state;
	assert_int_equal(policy_add_entry(body, "pypi", NULL), 0);
	assert_int_equal(policy_add_entry(body, "{\"host\": \"a.b\", \"ports\": [1]}", NULL), 0);
	assert_int_equal(policy_add_entry(body, "", NULL), 0); /* the daemon refuses it, by name */
	list = json_object_get(body, "allow");
	assert_int_equal(json_array_size(list), 3);
	assert_string_equal(json_string_value(json_array_get(list, 0)), "pypi");
	assert_int_equal(json_integer_value(json_array_get(
				 json_object_get(json_array_get(list, 1), "ports"), 0)),
			 1);
	assert_int_equal(policy_add_entry(body, "{\"host\": ", &err), -EINVAL);
	assert_non_null(strstr(err.msg, "--allow {\"host\": "));
	assert_int_equal(policy_add_entry(body, "{\"a\": 1, \"a\": 2}", NULL), -EINVAL);
	assert_int_equal(policy_add_entry(body, "\xff", NULL), -EINVAL);
	assert_int_equal(json_array_size(list), 3);
	json_decref(body);
}

static int print(const char *body, const char *answer, char out[1000])
{
	FILE *f = fmemopen(out, 1000, "w");
	json_t *b = json_loads(body, 0, NULL), *a = json_loads(answer, 0, NULL);
	int rc;

	assert_non_null(f);
	assert_non_null(a);
	out[0] = '\0';
	rc = policy_print(f, b, a);
	fclose(f);
	json_decref(a);
	json_decref(b);
	return rc;
}

static void test_answers(void **state)
{
	char out[1000];

	(void)state;
	assert_int_equal(
		print("{\"host\": \"a.test\"}",
		      "{\"verdict\": \"allow\", \"reason\": null, \"rule\": \"*.test\", \"hint\": "
		      "\"\", \"ceiling\": {\"allowed\": true, \"rule\": \"a.test\"}, "
		      "\"addresses\": [{\"address\": \"192.0.2.1\", \"allowed\": true, \"why\": "
		      "\"public\"}, {\"address\": \"10.0.0.1\", \"allowed\": false, \"why\": "
		      "\"private\"}]}",
		      out),
		0);
	assert_string_equal(out, "allow  a.test:443\n"
				 "  rule       *.test\n"
				 "  ceiling    a.test\n"
				 "  addresses  192.0.2.1\n"
				 "             10.0.0.1  refused: private\n");
	assert_int_equal(print("{\"host\": \"b\\u001b[31m.test\", \"port\": 80}",
			       "{\"verdict\": \"deny\", \"reason\": \"ceiling\", \"rule\": null, "
			       "\"hint\": \"ask\\u0007 him\\u009b\\u202e\", \"ceiling\": "
			       "{\"allowed\": false, "
			       "\"rule\": null}, \"addresses\": []}",
			       out),
			 1);
	assert_string_equal(out, "deny  b?[31m.test:80\n"
				 "  reason     ceiling\n"
				 "  ceiling    the operator's ceiling does not have it\n"
				 "  hint       ask? him??\n");
	/* No ceiling, nothing else: one line. */
	assert_int_equal(
		print("{\"host\": \"a\"}", "{\"verdict\": \"deny\", \"ceiling\": null}", out), 1);
	assert_string_equal(out, "deny  a:443\n");
	assert_int_equal(print("{\"host\": \"a\"}", "{\"verdict\": \"maybe\"}", out), -EPROTO);
	assert_int_equal(print("{\"host\": \"a\"}", "{\"verdict\": true}", out), -EPROTO);
	assert_int_equal(print("{\"host\": \"a\"}", "[]", out), -EPROTO);
	assert_string_equal(out, "");
}

int main(void)
{
#define WITH_PLACE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		WITH_PLACE(test_no_file),
		WITH_PLACE(test_what_it_says),
		WITH_PLACE(test_file_that_cannot_be_read),
		WITH_PLACE(test_where_it_is),
		cmocka_unit_test(test_targets),
		cmocka_unit_test(test_entries),
		cmocka_unit_test(test_answers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
