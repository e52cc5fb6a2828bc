/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare`: the command line. A table of verbs; each verb is a file.
 */
#include "cli/cli.h"

#include <stdio.h>
#include <string.h>

static int verb_version(int argc, char **argv);
static int verb_help(int argc, char **argv);

static const struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what;
} verbs[] = {
	{"serve", verb_serve, "start the sandbox system"},
	{"shell", verb_shell, "a shell in a sandbox, on your terminal or in a pipe"},
	{"template", verb_template, "list, build and remove what sandboxes are made from"},
	{"policy", verb_policy, "what a sandbox would be allowed to reach, and why"},
	{"doctor", verb_doctor, "what this machine can and cannot do, and what to do about it"},
	{"box", verb_box, "run a script in an emulated host, for tests"},
	{"version", verb_version, "print the version"},
	{"help", verb_help, "print this text"},
};

static void print_usage(FILE *out)
{
	fprintf(out, "usage: podflare VERB [options]\n\n");
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(out, "  %-9s %s\n", verbs[i].name, verbs[i].what);
	fprintf(out, "\n`podflare VERB --help` says more.\n");
}

static int verb_version(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	printf("podflare %s\n", PODFLARE_VERSION);
	return CLI_OK;
}

static int verb_help(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	print_usage(stdout);
	return CLI_OK;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
		name = "help";
	if (strcmp(name, "--version") == 0)
		name = "version";
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (strcmp(name, verbs[i].name) == 0)
			return verbs[i].run(argc - 1, argv + 1);
	if (*name)
		cli_say("there is no verb '%s'", name);
	print_usage(stderr);
	return CLI_USAGE;
}
