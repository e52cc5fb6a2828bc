/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare template`: hands over to guest/template.py, which knows recipes and
 * builds images. This part finds it, checks the words, and becomes it by exec.
 */
#include "cli/cli.h"
#include "cli/paths.h"
#include "cli/tools.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
	"usage: podflare template ls\n"
	"       podflare template build [--update] RECIPE_DIR|NAME...\n"
	"       podflare template check RECIPE_DIR|NAME...\n"
	"       podflare template rm NAME...\n"
	"\n"
	"A template is what sandboxes are made from: an image of Debian packages and files, and "
	"code\n"
	"that has run in it already. It is built from a recipe, a folder with a template.toml;\n"
	"docs/templates.md tells how to write one.\n"
	"\n"
	"  ls      what is built, and whether its recipe has changed since (state: stale)\n"
	"  build   checks a recipe and builds it; a name means a recipe of the project, or what "
	"was\n"
	"          built before. --update: with the packages of today\n"
	"  check   only checks a recipe\n"
	"  rm      removes a built template; its recipe stays\n"
	"\n"
	"A `podflare serve` that runs sees what was built or removed after a restart.\n";

#define ARGS_FIXED 6 /* python3, template.py, --build, DIR, --hint, NULL */

int verb_template(int argc, char **argv)
{
	static char build_opt[] = "--build", hint_opt[] = "--hint";
	char python[PATH_MAX], script[PATH_MAX];
	_cleanup_free char **args = calloc((size_t)argc + ARGS_FIXED, sizeof(*args));
	static const char *const known[] = {"ls", "build", "check", "rm"};
	struct paths paths;
	struct err err = {0};
	bool found = false;
	size_t n = 0;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
			fputs(help, stdout);
			return CLI_OK;
		}
	}
	if (argc < 2)
		return cli_usage_error("template", "what to do? ls, build, check or rm");
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		found |= strcmp(argv[1], known[i]) == 0;
	if (!found)
		return cli_usage_error("template", "'%s' is none of ls, build, check and rm",
				       argv[1]);
	if (strcmp(argv[1], "ls") == 0 && argc > 2)
		return cli_usage_error("template", "unexpected argument '%s'", argv[2]);
	if (strcmp(argv[1], "ls") != 0 && argc == 2)
		return cli_usage_error("template", "which template? podflare template %s NAME",
				       argv[1]);
	if (paths_find(&paths, &err) < 0 || paths_template_script(&paths, script, &err) < 0) {
		cli_say("%s", err.msg);
		return CLI_FAILED;
	}
	/* The system's: it has no packages of the user's in its way. */
	if (tools_find("/usr/bin/python3", python) < 0 && tools_find("python3", python) < 0) {
		cli_say("building templates needs python3, which is not installed: apt install "
			"python3");
		return CLI_FAILED;
	}
	if (!args) {
		cli_say("no memory");
		return CLI_FAILED;
	}
	args[n++] = python;
	args[n++] = script;
	args[n++] = build_opt;
	args[n++] = paths.base;
	args[n++] = hint_opt;
	for (int i = 1; i < argc; i++)
		args[n++] = argv[i];
	execv(python, args);
	cli_say("cannot start %s: %s", python, strerror(errno));
	return CLI_FAILED;
}
