/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POST /v1/sandboxes/:id/commands: a command that goes on without a client. The
 * agent is asked as for an exec, and answers once the program runs; what it
 * writes is kept in the guest. No queue: they run beside whatever else does.
 */
#include "daemon/api.h"
#include "daemon/ask.h"
#include "daemon/command_watch.h"
#include "daemon/daemon.h"
#include "daemon/exec.h"
#include "daemon/fields.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "proto/frame.h"

#include <stdio.h>
#include <string.h>

struct command_body {
	const char *code, *language, *cwd, *user, *id;
	size_t code_len;
	json_t *env, *argv;
	const json_t *pty;
	double timeout;
	bool has_stdin;
};

static bool create_ok(struct request *r, const json_t *answer)
{
	json_t *pid = json_object_get(answer, "pid");
	const char *type = json_string_value(json_object_get(answer, "type"));

	if (!type || strcmp(type, "position") != 0 || !json_is_integer(pid) ||
	    json_integer_value(pid) < 1)
		return false;
	command_watch_add(ask_sandbox(r), r->match.other, json_integer_value(pid), ask_note(r));
	reply_json(r, 200, json_pack("{s:s, s:O}", "command_id", r->match.other, "pid", pid));
	return true;
}

/* What it names besides is a member of the request. */
static void refused(struct agent_failure *why, const char *language)
{
	if (agent_failure_is(why, "exists")) {
		why->code = "command_exists";
		why->field = "command_id";
	} else if (agent_failure_is(why, "too_many")) {
		why->code = "too_many_commands";
	} else {
		agent_failure_of_exec(why, language);
	}
}

static void argv_refused(struct agent_failure *why)
{
	refused(why, "argv");
}

static void bash_refused(struct agent_failure *why)
{
	refused(why, "bash");
}

static void javascript_refused(struct agent_failure *why)
{
	refused(why, "javascript");
}

static const struct {
	const char *language;
	struct ask_ops ops;
} kinds[] = {
	{"argv", {create_ok, argv_refused, .goes_on = true}},
	{"bash", {create_ok, bash_refused, .goes_on = true}},
	{"javascript", {create_ok, javascript_refused, .goes_on = true}},
};

/* Types alone. */
static bool command_members(struct request *r, const json_t *body, struct command_body *b)
{
	static const char *const known[] = {"code", "argv",       "language", "cwd",
					    "env",  "user",       "stdin",    "timeout",
					    "pty",  "command_id", NULL};

	return fields_only(r, body, known) &&
	       fields_string(r, body, "code", &b->code, &b->code_len) &&
	       fields_array(r, body, "argv", LIMIT_ARGV, FRAME_PAYLOAD_MAX / 2, &b->argv) &&
	       fields_string(r, body, "language", &b->language, NULL) &&
	       fields_path(r, body, "cwd", &b->cwd) && fields_env(r, body, "env", &b->env) &&
	       fields_user(r, body, "user", &b->user) &&
	       fields_bool(r, body, "stdin", &b->has_stdin) &&
	       fields_number(r, body, "timeout", LIMIT_EXEC_S, &b->timeout) &&
	       fields_size(r, body, "pty", &b->pty) &&
	       fields_string(r, body, "command_id", &b->id, NULL);
}

/* What is run, and as what: the row of kinds, or NULL. */
static const struct ask_ops *command_kind(struct request *r, struct command_body *b)
{
	if (b->argv && (b->code || b->language)) {
		reply_invalid(r, "argv", "argv is a program of its own: it goes without %s",
			      b->code ? "code" : "language");
		return NULL;
	}
	if (b->argv && json_string_length(json_array_get(b->argv, 0)) > 0) {
		b->language = kinds[0].language;
		return &kinds[0].ops;
	}
	if (b->argv) {
		reply_invalid(r, "argv", "argv must begin with the name of a program");
		return NULL;
	}
	if (!b->code) {
		reply_invalid(r, "code", "code is missing");
		return NULL;
	}
	for (size_t i = 1; i < ARRAY_SIZE(kinds); i++) {
		if (b->language && strcmp(b->language, kinds[i].language) != 0)
			continue;
		b->language = kinds[i].language;
		return &kinds[i].ops;
	}
	reply_invalid(r, "language", "commands are of bash and javascript; not of \"%.64s\"",
		      b->language);
	return NULL;
}

static json_int_t command_ms(const struct command_body *b)
{
	json_int_t ms = (json_int_t)(b->timeout * 1000);

	return b->timeout > 0 && ms == 0 ? 1 : ms; /* 0 is none */
}

/* The EXEC frame, but for the code. */
static json_t *command_head(const struct command_body *b, const char *id, uint32_t slack_s)
{
	return json_pack("{s:s, s:O*, s:s*, s:O*, s:s*, s:I, s:I, s:b, s:s, s:O*}", "language",
			 b->language, "argv", b->argv, "cwd", b->cwd, "env", b->env, "user",
			 b->user, "timeout_ms", command_ms(b), "grace_ms",
			 (json_int_t)slack_s * 1000, "stdin", b->has_stdin, "keep", id, "pty",
			 (json_t *)(uintptr_t)b->pty);
}

/* Sends it. Answers in any case. */
static void command_start(struct request *r, struct sandbox *sb, const struct command_body *b,
			  const struct ask_ops *ops)
{
	json_t *head;
	char *code;

	/* The path has no second variable segment: the answer finds the name there. */
	if (b->id) {
		snprintf(r->match.other, sizeof(r->match.other), "%s", b->id);
	} else {
		memcpy(r->match.other, "cmd_", 4);
		ids_random_hex(r->match.other + 4, 12);
	}
	head = command_head(b, r->match.other, sb->d->config.exec_slack_s);
	if (head && json_dumpb(head, NULL, 0, JSON_COMPACT) > FRAME_PAYLOAD_MAX) {
		json_decref(head);
		reply_invalid(r, b->argv ? "argv" : "env",
			      "argv, env and cwd are too large together");
		return;
	}
	code = malloc(b->code_len + 1);
	if (!code) {
		json_decref(head);
		reply_json(r, 500, NULL);
		return;
	}
	if (b->code_len)
		memcpy(code, b->code, b->code_len);
	sandbox_begin_call(sb);
	sb->exec_count++;
	ask_agent_with(r, sb, FRAME_EXEC, head, code, b->code_len, ops, (uint64_t)command_ms(b));
}

void api_command_create(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	json_t *body = sb ? fields_parse(r, false) : NULL;
	struct command_body b = {0};
	const struct ask_ops *ops;

	if (!body)
		return;
	if (command_members(r, body, &b) && (ops = command_kind(r, &b)) != NULL) {
		if (b.id && !ids_name_valid(b.id))
			reply_invalid(r, "command_id",
				      "command_id must be 1 to 64 of A-Z, a-z, 0-9, _ and -");
		else
			command_start(r, sb, &b, ops);
	}
	json_decref(body);
}
