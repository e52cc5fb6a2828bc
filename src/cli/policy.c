/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare policy test`: what would happen if a sandbox asked for a host, and
 * why. The daemon is asked, and its proxy decides as it would for a guest;
 * nothing is connected to.
 */
#include "cli/policy.h"

#include "cli/cli.h"
#include "cli/http_call.h"
#include "lib/plain.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const char help[] =
	"usage: podflare policy test [options] HOST[:PORT]\n"
	"\n"
	"What would happen if code in a sandbox asked for HOST, and why. Nothing is connected to.\n"
	"Without a port: 443.\n"
	"\n"
	"  --allow ENTRY   an entry of the allowlist to be tried, as in egress_allow: a name, a\n"
	"                  wildcard, a group, or a JSON object; as often as needed\n"
	"  --sandbox ID    try what this sandbox is allowed\n"
	"  --method M      the request's method and path, for what the proxy sees of it: plain\n"
	"  --path P        HTTP (port 80), the gateway and intercepted hosts (other ports);\n"
	"                  without them: a tunnel\n"
	"\n"
	"Without --allow and --sandbox it is the operator's default that is tried.\n"
	"\n"
	"The exit status is 0 when it would be allowed, 3 when not; 1 when that cannot be told.\n"
	"\n"
	"The daemon is $PODFLARE_HOSTD_URL, else $PODFLARE_HOST, else " ENDPOINT_DEFAULT ";\n"
	"its key is $PODFLARE_API_KEY.\n";

#define EXIT_DENIED    3
#define CALL_TIMEOUT_S 60 /* a proxy is started, and a resolver asked */

enum { OPT_ALLOW = 1, OPT_SANDBOX, OPT_METHOD, OPT_PATH, OPT_HELP };

static const struct option options[] = {
	{"allow", required_argument, NULL, OPT_ALLOW},
	{"sandbox", required_argument, NULL, OPT_SANDBOX},
	{"method", required_argument, NULL, OPT_METHOD},
	{"path", required_argument, NULL, OPT_PATH},
	{"help", no_argument, NULL, OPT_HELP},
	{0},
};

int policy_split(json_t *body, const char *target, struct err *err)
{
	const char *colon = strrchr(target, ':'), *first = strchr(target, ':');
	size_t len = strlen(target);
	uint64_t port = 0;
	json_t *host;
	int rc;

	if (strchr(target, '/'))
		return err_text(err, EINVAL,
				"HOST or HOST:PORT is wanted, without scheme and path, not '%s'",
				target);
	/* More than one colon is an address of IPv6, which has a port only behind brackets. */
	if (colon && colon != first && (*target != '[' || colon[-1] != ']'))
		colon = NULL;
	if (colon) {
		rc = cli_parse_number("the port", colon + 1, 1, 65535, &port, err);
		if (rc < 0)
			return rc;
		len = (size_t)(colon - target);
	}
	if (len == 0)
		return err_text(err, EINVAL, "'%s' has no host", target);
	host = json_stringn(target, len);
	if (!host)
		return err_text(err, EINVAL, "the host is not UTF-8");
	if (json_object_set_new(body, "host", host) < 0 ||
	    (port && json_object_set_new(body, "port", json_integer((json_int_t)port)) < 0))
		return err_set(err, ENOMEM, "the request");
	return 0;
}

int policy_add_entry(json_t *body, const char *text, struct err *err)
{
	json_t *list = json_object_get(body, "allow"), *entry;
	json_error_t e = {0};

	if (!list) {
		list = json_array();
		if (json_object_set_new(body, "allow", list) < 0)
			return err_set(err, ENOMEM, "the request");
	}
	entry = *text == '{' ? json_loads(text, JSON_REJECT_DUPLICATES, &e) : json_string(text);
	if (!entry)
		return err_text(err, EINVAL, "--allow %s: %s", text,
				*text == '{' ? e.text : "it is not UTF-8");
	return json_array_append_new(list, entry) < 0 ? err_set(err, ENOMEM, "the request") : 0;
}

static int set_text(json_t *body, const char *key, const char *option, struct err *err)
{
	json_t *text = json_string(optarg);

	if (!text)
		return err_text(err, EINVAL, "%s is not UTF-8", option);
	return json_object_set_new(body, key, text) < 0 ? err_set(err, ENOMEM, "the request") : 0;
}

static int read_option(json_t *body, int opt, char **argv, struct err *err)
{
	switch (opt) {
	case OPT_ALLOW:
		return policy_add_entry(body, optarg, err);
	case OPT_SANDBOX:
		return set_text(body, "sandbox", "--sandbox", err);
	case OPT_METHOD:
		return set_text(body, "method", "--method", err);
	case OPT_PATH:
		return set_text(body, "path", "--path", err);
	case ':':
		return err_text(err, EINVAL, "%s needs a value", argv[optind - 1]);
	default:
		return err_text(err, EINVAL, "unknown option %s", argv[optind - 1]);
	}
}

/* The body of the request; 1: help was asked for. */
static int read_options(json_t *body, int argc, char **argv, struct err *err)
{
	int opt, rc = 0;

	opterr = 0;
	while (rc == 0 && (opt = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		if (opt == 'h' || opt == OPT_HELP)
			return 1;
		rc = read_option(body, opt, argv, err);
	}
	if (rc < 0)
		return rc;
	if (optind == argc)
		return err_text(err, EINVAL, "which host? podflare policy test HOST[:PORT]");
	if (optind + 1 < argc)
		return err_text(err, EINVAL, "unexpected argument '%s'", argv[optind + 1]);
	if (json_object_get(body, "allow") && json_object_get(body, "sandbox"))
		return err_text(err, EINVAL,
				"--allow and --sandbox name two allowlists; give one of them");
	if (!json_object_get(body, "method") != !json_object_get(body, "path"))
		return err_text(err, EINVAL, "--method and --path go together");
	return policy_split(body, argv[optind], err);
}

/* What comes over the wire may have come from elsewhere, and is shown on a terminal. */
static void print_text(FILE *out, const char *s)
{
	size_t len = strlen(s);

	while (len) {
		bool plain;
		size_t n = plain_step((const uint8_t *)s, len, &plain);

		fwrite(plain ? s : "?", plain ? n : 1, 1, out);
		s += n;
		len -= n;
	}
}

static void print_line(FILE *out, const char *label, const json_t *value)
{
	if (!json_is_string(value) || !*json_string_value(value))
		return;
	fprintf(out, "  %-10s ", label);
	print_text(out, json_string_value(value));
	fputc('\n', out);
}

/* {"allowed", "rule"}, or null when there is none. */
static void print_ceiling(FILE *out, const json_t *ceiling)
{
	const json_t *rule = json_object_get(ceiling, "rule");

	if (json_is_true(json_object_get(ceiling, "allowed")))
		print_line(out, "ceiling", rule);
	else if (json_is_object(ceiling))
		fprintf(out, "  %-10s the operator's ceiling does not have it\n", "ceiling");
}

static void print_addresses(FILE *out, const json_t *list)
{
	const char *label = "addresses";
	size_t i;
	json_t *one;

	json_array_foreach(list, i, one)
	{
		const char *address = json_string_value(json_object_get(one, "address"));
		const char *why = json_string_value(json_object_get(one, "why"));
		bool allowed = json_is_true(json_object_get(one, "allowed"));

		fprintf(out, "  %-10s ", label);
		print_text(out, address ? address : "?");
		fputs(allowed ? "" : "  refused", out);
		if (!allowed && why) {
			fputs(": ", out);
			print_text(out, why);
		}
		fputc('\n', out);
		label = "";
	}
}

int policy_print(FILE *out, const json_t *body, const json_t *answer)
{
	const char *verdict = json_string_value(json_object_get(answer, "verdict"));
	const json_t *port = json_object_get(body, "port");
	bool allow = verdict && strcmp(verdict, "allow") == 0;

	if (!allow && (!verdict || strcmp(verdict, "deny") != 0))
		return -EPROTO;
	fprintf(out, "%s  ", verdict);
	print_text(out, json_string_value(json_object_get(body, "host")));
	fprintf(out, ":%d\n", port ? (int)json_integer_value(port) : 443);
	print_line(out, "rule", json_object_get(answer, "rule"));
	print_line(out, "reason", json_object_get(answer, "reason"));
	print_ceiling(out, json_object_get(answer, "ceiling"));
	print_addresses(out, json_object_get(answer, "addresses"));
	print_line(out, "hint", json_object_get(answer, "hint"));
	return allow ? 0 : 1;
}

static int ask(json_t *body, json_t **answer, struct err *err)
{
	struct endpoint to;
	struct http_call call = {
		.to = &to,
		.method = "POST",
		.path = "/v1/policy/test",
		.body = body,
		.timeout_s = CALL_TIMEOUT_S,
		.stop_fd = -1,
	};
	int rc = endpoint_from_env(&to, err);

	if (rc == 0)
		endpoint_tell_key(&to);
	return rc < 0 ? rc : http_call(&call, answer, err);
}

static int test(int argc, char **argv)
{
	json_t *body = json_object(), *answer = NULL;
	struct err err = {0};
	int status = CLI_FAILED, rc = body ? read_options(body, argc, argv, &err) : -ENOMEM;

	if (rc == 1) {
		fputs(help, stdout);
		status = CLI_OK;
	} else if (rc < 0) {
		status = cli_usage_error("policy", "%s", body ? err.msg : "no memory");
	} else if (ask(body, &answer, &err) < 0) {
		cli_say("%s", err.msg);
	} else {
		rc = policy_print(stdout, body, answer);
		if (rc < 0)
			cli_say("the daemon's answer has no verdict");
		else
			status = rc == 0 ? CLI_OK : EXIT_DENIED;
	}
	json_decref(body);
	json_decref(answer);
	return status;
}

int verb_policy(int argc, char **argv)
{
	if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
		fputs(help, stdout);
		return CLI_OK;
	}
	if (argc >= 2 && strcmp(argv[1], "test") != 0)
		return cli_usage_error(
			"policy", "there is no 'policy %s', only policy test HOST[:PORT]", argv[1]);
	if (argc < 2)
		return cli_usage_error("policy", "usage: podflare policy test HOST[:PORT]");
	return test(argc - 1, argv + 1);
}
