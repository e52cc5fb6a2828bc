/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arguments of commands. node has no argument that names a file and still looks
 * for modules where the command runs: long scripts are read by a short one,
 * which runs them as if they stood in its own place.
 */
#define _GNU_SOURCE
#include "agent/program.h"
#include "lib/io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One argument of execve() holds at most 128 KiB with its NUL. */
#define PROGRAM_ARG_MAX (128u * 1024 - 1)
#define PROGRAM_EVAL    "--eval="

static char program_bash[] = "bash";
static char program_node[] = "node";
static char program_dash_c[] = "-c";
static char program_file[] = "/dev/fd/3";
/* The way to have import() depends on the version: the callback alone is for old ones. */
static char program_eval_file[] =
	PROGRAM_EVAL "const fs = require('fs'), vm = require('vm');"
		     "const code = fs.readFileSync('/dev/fd/3', 'utf8');"
		     "fs.closeSync(3);"
		     "vm.runInThisContext(code, {filename: '[eval]', importModuleDynamically:"
		     "vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER ?? ((name) => import(name))});";

/* The code as one argument behind a prefix; NULL when it is too long for that. */
static int program_text(struct program *p, const struct code *code, const char *prefix)
{
	size_t n = strlen(prefix);
	int rc;

	if (code->size + n > PROGRAM_ARG_MAX)
		return 0;
	p->text = calloc(1, n + code->size + 1);
	if (!p->text)
		return -ENOMEM;
	memcpy(p->text, prefix, n);
	rc = io_pread_full(code->fd, p->text + n, code->size, 0);
	if (rc < 0)
		program_free(p);
	return rc;
}

static int program_init_bash(struct program *p, const struct code *code)
{
	int rc = program_text(p, code, "");

	p->path = "/bin/bash";
	p->args[0] = program_bash;
	if (p->text) {
		p->args[1] = program_dash_c;
		p->args[2] = p->text;
	} else {
		p->args[1] = program_file;
		p->extra_fd = code->fd;
	}
	return rc;
}

static int program_init_node(struct program *p, const struct code *code, const char *node)
{
	int rc = program_text(p, code, PROGRAM_EVAL);

	p->path = node;
	p->args[0] = program_node;
	p->args[1] = p->text ? p->text : program_eval_file;
	if (!p->text)
		p->extra_fd = code->fd;
	return rc;
}

int program_init(struct program *p, const struct request_exec *r, const struct code *code,
		 const char *node, struct err *err)
{
	int rc = 0;

	*p = (struct program){.extra_fd = -1};
	p->argv = p->args;
	switch (r->language) {
	case LANGUAGE_ARGV:
		p->path = r->argv[0];
		p->argv = r->argv;
		p->search = true;
		break;
	case LANGUAGE_JAVASCRIPT:
		if (access(node, X_OK) < 0)
			return err_text(err, ENOENT,
					"there is no JavaScript in this sandbox: its template has "
					"no %s",
					node);
		rc = program_init_node(p, code, node);
		break;
	case LANGUAGE_BASH:
	case LANGUAGE_PYTHON:
		rc = program_init_bash(p, code);
		break;
	}
	return rc < 0 ? err_set(err, -rc, "cannot hand over the code") : 0;
}

void program_free(struct program *p)
{
	free(p->text);
	p->text = NULL;
}
