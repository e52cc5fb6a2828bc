/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings of podflared and the decision who may call.
 */
#include "unit.h"

#include "daemon/auth.h"
#include "daemon/config.h"

#include <string.h>

static struct config c;
static struct err e;

static int load(char **argv)
{
	int argc = 0;

	while (argv[argc])
		argc++;
	e = (struct err){0};
	return config_load(&c, argc, argv, &e);
}

#define LOAD(...) load((char *[]){(char *)(uintptr_t) "podflared", __VA_ARGS__ __VA_OPT__(, ) NULL})
#define ARG(s)    (char *)(uintptr_t)(s)
#define REQUIRED  ARG("--state"), ARG("s"), ARG("--guest"), ARG("g"), ARG("--vmm"), ARG("v")

static int clear_env(void **state)
{
	static const char *const names[] = {
		"PODFLARE_API_KEYS",       "PODFLARE_AUTH_DISABLED",    "PODFLARE_HOSTD_ADDR",
		"PODFLARE_LOG_FORMAT",     "PODFLARE_PING_AFTER",       "PODFLARE_PONG_WITHIN",
		"PODFLARE_CREATE_TIMEOUT", "PODFLARE_TEMPLATE_TIMEOUT", "PODFLARE_POOL_SIZE",
		"PODFLARE_MAX_FORK",       "PODFLARE_FREEZE_TIMEOUT",   "PODFLARE_EXEC_SLACK",
		"PODFLARE_HTTP_TIMEOUT",   "PODFLARE_REQUESTS_MIB",     "PODFLARE_KEEP_DAYS",
		"PODFLARE_KEEP_MIB",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unsetenv(names[i]);
	return 0;
}

static void test_defaults(void **state)
{
	(void)state;
	assert_int_equal(LOAD(REQUIRED), 0);
	assert_string_equal(c.addr_text, "127.0.0.1:7070");
	assert_true(c.loopback);
	assert_false(c.auth);
	assert_string_equal(c.kernel_path, "g/vmlinux");
	assert_string_equal(c.initramfs_path, "g/initramfs.cpio");
	assert_string_equal(c.image_path, "g/rootfs.erofs");
	assert_string_equal(c.kvm_path, "/dev/kvm");
	assert_string_equal(c.disk_dir, "s/disks");
	assert_false(c.image_given);
	assert_int_equal(c.create_timeout_s, 120);
	assert_int_equal(c.exec_slack_s, 2);
	assert_int_equal(c.http_timeout_s, 60);
	assert_int_equal(c.requests_mib, 1024);
	assert_int_equal(c.keep_days, 90);
	assert_int_equal(c.keep_mib, 256);
	assert_int_equal(c.template_timeout_s, 600);
	assert_int_equal(c.pool_size, 2);
	assert_int_equal(c.max_fork, 32);
	assert_int_equal(c.max_sandboxes, 1024);
	config_free(&c);
}

static void test_command_line_over_environment(void **state)
{
	(void)state;
	setenv("PODFLARE_HOSTD_ADDR", "127.0.0.1:1", 1);
	assert_int_equal(LOAD(REQUIRED), 0);
	assert_string_equal(c.addr_text, "127.0.0.1:1");
	assert_int_equal(LOAD(REQUIRED, ARG("--addr"), ARG("[::1]:2"), ARG("--image"),
			      ARG("/dev/vdb"), ARG("--max-sandboxes"), ARG("3")),
			 0);
	assert_string_equal(c.addr_text, "[::1]:2");
	assert_true(c.loopback);
	assert_string_equal(c.image_path, "/dev/vdb");
	assert_int_equal(c.max_sandboxes, 3);
}

static void test_addresses(void **state)
{
	static const struct {
		const char *text, *out;
		bool loopback;
	} good[] = {
		{"127.0.0.1:7070", "127.0.0.1:7070", true},
		{"127.255.0.9:0", "127.255.0.9:0", true},
		{"localhost:80", "127.0.0.1:80", true},
		{"0.0.0.0:65535", "0.0.0.0:65535", false},
		{"128.0.0.1:1", "128.0.0.1:1", false},
		{"[::1]:1", "[::1]:1", true},
		{"[::]:1", "[::]:1", false},
		{"[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:1", false},
	};
	static const char *const bad[] = {
		"",
		"7070",
		":7070",
		"localhost",
		"localhost:",
		"1.2.3:1",
		"[::1]",
		"[::1:7070",
		"::1:7070",
		"localhost:-1",
		"a b:1",
		"127.0.0.1:65536",
		"127.0.0.1: 1",
		"127.0.0.1:+1",
		"[]:1",
		"[:1",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(config_parse_addr(&c, good[i].text, &e), 0);
		assert_string_equal(c.addr_text, good[i].out);
		assert_int_equal(c.loopback, good[i].loopback);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_true(config_parse_addr(&c, bad[i], &e) < 0);
}

static void test_bind_rule(void **state)
{
	(void)state;
	assert_true(LOAD(REQUIRED, ARG("--addr"), ARG("0.0.0.0:1")) < 0);
	assert_non_null(strstr(e.msg, "refusing to listen on 0.0.0.0:1 without keys"));
	setenv("PODFLARE_AUTH_DISABLED", "0", 1);
	assert_true(LOAD(REQUIRED, ARG("--addr"), ARG("0.0.0.0:1")) < 0);
	setenv("PODFLARE_API_KEYS", " , ,", 1);
	assert_true(LOAD(REQUIRED, ARG("--addr"), ARG("0.0.0.0:1")) < 0);
	assert_int_equal(LOAD(REQUIRED, ARG("--addr"), ARG("0.0.0.0:1"), ARG("--trust-forward")),
			 0);
	setenv("PODFLARE_AUTH_DISABLED", "1", 1);
	assert_int_equal(LOAD(REQUIRED, ARG("--addr"), ARG("0.0.0.0:1")), 0);
	assert_false(c.auth);
	unsetenv("PODFLARE_AUTH_DISABLED");
	setenv("PODFLARE_API_KEYS", "a", 1);
	assert_int_equal(LOAD(REQUIRED, ARG("--addr"), ARG("0.0.0.0:1")), 0);
	assert_true(c.auth);
	config_free(&c);
}

static void test_keys(void **state)
{
	char many[2 * (CONFIG_KEYS_MAX + 1) + 1] = "";

	(void)state;
	setenv("PODFLARE_API_KEYS", " one,, two ,three", 1);
	assert_int_equal(LOAD(REQUIRED), 0);
	assert_int_equal(c.nkeys, 3);
	assert_string_equal(c.keys[0], "one");
	assert_string_equal(c.keys[1], "two");
	assert_string_equal(c.keys[2], "three");
	config_free(&c);
	setenv("PODFLARE_API_KEYS", "one,t wo", 1);
	assert_true(LOAD(REQUIRED) < 0);
	assert_null(strstr(e.msg, "t wo"));
	config_free(&c);
	for (int i = 0; i < CONFIG_KEYS_MAX + 1; i++)
		memcpy(many + (size_t)i * 2, "k,", 3);
	setenv("PODFLARE_API_KEYS", many, 1);
	assert_true(LOAD(REQUIRED) < 0);
	config_free(&c);
}

static void test_forks_and_templates(void **state)
{
	(void)state;
	setenv("PODFLARE_POOL_SIZE", "7", 1);
	setenv("PODFLARE_MAX_FORK", "8", 1);
	assert_int_equal(LOAD(REQUIRED), 0);
	assert_int_equal(c.pool_size, 7);
	assert_int_equal(c.max_fork, 8);
	assert_int_equal(LOAD(REQUIRED, ARG("--pool"), ARG("0"), ARG("--max-fork"), ARG("1"),
			      ARG("--disk-dir"), ARG("/d"), ARG("--template"), ARG("a=b=c"),
			      ARG("--template"), ARG("d=e=f")),
			 0);
	assert_int_equal(c.pool_size, 0);
	assert_int_equal(c.max_fork, 1);
	assert_string_equal(c.disk_dir, "/d");
	assert_int_equal(c.ntemplates, 2);
	assert_string_equal(c.templates[1], "d=e=f");
	assert_true(LOAD(REQUIRED, ARG("--template"), ARG("a=b=c"), ARG("--image"), ARG("i")) < 0);
	assert_true(LOAD(REQUIRED, ARG("--max-fork"), ARG("0")) < 0);
	assert_true(LOAD(REQUIRED, ARG("--pool"), ARG("-1")) < 0);
	setenv("PODFLARE_POOL_SIZE", "many", 1);
	assert_true(LOAD(REQUIRED) < 0);
}

static void test_public_address(void **state)
{
	static const char *const bad[] = {"", "host", ":80", "host:", "host:0", "host:65536"};

	(void)state;
	assert_int_equal(LOAD(REQUIRED, ARG("--public-addr"), ARG("host.example:7070")), 0);
	assert_string_equal(c.public_addr, "host.example:7070");
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_true(LOAD(REQUIRED, ARG("--public-addr"), ARG(bad[i])) < 0);
}

static void test_what_is_missing(void **state)
{
	(void)state;
	assert_true(LOAD() < 0);
	assert_true(LOAD(ARG("--state"), ARG("s"), ARG("--guest"), ARG("g")) < 0);
	assert_string_equal(e.msg, "--vmm is missing");
	assert_true(LOAD(REQUIRED, ARG("--addr")) < 0);
	assert_string_equal(e.msg, "--addr needs a value");
	assert_true(LOAD(REQUIRED, ARG("more")) < 0);
	assert_int_equal(LOAD(ARG("--help")), 0);
	assert_true(c.show_help);
}

/* --- auth -------------------------------------------------------------------------------- */

static unsigned int key;

static enum auth_result check(const struct config *k, const char *authorization, const char *origin,
			      const char *host)
{
	key = 99;
	return auth_check(k, authorization, origin, host, &key);
}

static void test_bearer(void **state)
{
	struct config k = {.auth = true, .nkeys = 2, .keys = {ARG("secret-one"), ARG("two")}};

	(void)state;
	assert_int_equal(check(&k, "Bearer secret-one", NULL, NULL), AUTH_OK);
	assert_int_equal(key, 0);
	assert_int_equal(check(&k, "bEARER two", NULL, "evil"), AUTH_OK);
	assert_int_equal(key, 1);
	assert_int_equal(check(&k, "Bearer   two \t", "http://evil", NULL), AUTH_OK);
	assert_int_equal(check(&k, NULL, NULL, NULL), AUTH_MISSING);
	assert_int_equal(check(&k, "", NULL, NULL), AUTH_MISSING);
	assert_int_equal(check(&k, "Bearer", NULL, NULL), AUTH_MISSING);
	assert_int_equal(check(&k, "Bearer  ", NULL, NULL), AUTH_MISSING);
	assert_int_equal(check(&k, "Bearertwo", NULL, NULL), AUTH_MISSING);
	assert_int_equal(check(&k, "Basic two", NULL, NULL), AUTH_MISSING);
	assert_int_equal(check(&k, "Bearer tw", NULL, NULL), AUTH_INVALID);
	assert_int_equal(check(&k, "Bearer twoo", NULL, NULL), AUTH_INVALID);
	assert_int_equal(check(&k, "Bearer twotwo", NULL, NULL), AUTH_INVALID);
	assert_int_equal(check(&k, "Bearer two two", NULL, NULL), AUTH_INVALID);
	assert_int_equal(check(&k, "Bearer secret-onf", NULL, NULL), AUTH_INVALID);
}

static void test_browser(void **state)
{
	struct config k = {0};

	(void)state;
	assert_int_equal(check(&k, NULL, NULL, "127.0.0.1:7070"), AUTH_OK);
	assert_int_equal(check(&k, NULL, NULL, "LOCALHOST"), AUTH_OK);
	assert_int_equal(check(&k, NULL, NULL, "[::1]:7070"), AUTH_OK);
	assert_int_equal(check(&k, NULL, NULL, NULL), AUTH_OK);
	assert_int_equal(check(&k, NULL, "http://127.0.0.1:7070", "127.0.0.1:7070"), AUTH_OK);
	assert_int_equal(check(&k, NULL, "http://127.0.0.1:8080", "127.0.0.1:7070"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, "null", "127.0.0.1:7070"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, NULL, "rebound.example:7070"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, NULL, "[evil]:7070"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, NULL, "["), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, NULL, ""), AUTH_ORIGIN);
	assert_int_equal(check(&k, "Bearer x", "http://evil", "localhost"), AUTH_ORIGIN);
	/* Behind a forwarder the name is its business; a foreign page is not. */
	k.trust_forward = true;
	assert_int_equal(check(&k, NULL, NULL, "host.example:7070"), AUTH_OK);
	assert_int_equal(check(&k, NULL, "http://evil", "host.example:7070"), AUTH_ORIGIN);
	/* Unless it says how it is called. */
	k.public_addr = "host.example:7070";
	assert_int_equal(check(&k, NULL, NULL, "HOST.example:7070"), AUTH_OK);
	assert_int_equal(check(&k, NULL, NULL, "host.example"), AUTH_OK);
	assert_int_equal(check(&k, NULL, NULL, "127.0.0.1:7070"), AUTH_OK);
	assert_int_equal(check(&k, NULL, NULL, "localhost:1"), AUTH_OK);
	assert_int_equal(check(&k, NULL, NULL, "host.example:7071"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, NULL, "host.exampl"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, NULL, "rebound.example:7070"), AUTH_ORIGIN);
	/* Who opened it to everybody has not opened it to every page that somebody looks at. */
	k.auth_disabled = true;
	assert_int_equal(check(&k, NULL, "http://evil", "host.example:7070"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, NULL, "any.example:7070"), AUTH_OK);
	k.public_addr = "127.0.0.1:7070";
	assert_int_equal(check(&k, NULL, NULL, "rebound.example:7070"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, NULL, "localhost:7070"), AUTH_OK);
	/* Keys that are there and not asked for are of no use to a page either. */
	k = (struct config){.auth_disabled = true, .nkeys = 1, .keys = {ARG("k")}};
	assert_int_equal(check(&k, NULL, "http://evil", "10.0.0.1:7070"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, "http://a.example", "a.example"), AUTH_OK);
	assert_int_equal(check(&k, NULL, NULL, "a.example"), AUTH_OK);
	k.loopback = true;
	assert_int_equal(check(&k, NULL, NULL, "a.example"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, "http://a.example", "a.example"), AUTH_ORIGIN);
	assert_int_equal(check(&k, NULL, "http://localhost:1", "localhost:1"), AUTH_OK);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_defaults, clear_env),
		cmocka_unit_test_setup(test_command_line_over_environment, clear_env),
		cmocka_unit_test(test_addresses),
		cmocka_unit_test_setup(test_bind_rule, clear_env),
		cmocka_unit_test_setup(test_keys, clear_env),
		cmocka_unit_test_setup(test_forks_and_templates, clear_env),
		cmocka_unit_test_setup(test_public_address, clear_env),
		cmocka_unit_test_setup(test_what_is_missing, clear_env),
		cmocka_unit_test(test_bearer),
		cmocka_unit_test(test_browser),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
