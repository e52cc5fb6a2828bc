/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POST /v1/sandboxes/:id/exec: the body, checked, becomes an exec. And what is asked of those
 * that there are: the list, and interrupting one.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/exec.h"
#include "daemon/fields.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "lib/base64.h"
#include "lib/json_safe.h"
#include "proto/frame.h"

#include <stdio.h>
#include <string.h>

struct exec_body {
	const char *code, *language, *cwd, *user, *exec_id, *context, *text, *base64, *action;
	size_t code_len, text_len, base64_len;
	json_t *env, *argv;
	json_int_t output_limit;
	double timeout, queue_timeout;
	bool rich;
};

/* Types alone. */
static bool exec_members(struct request *r, const json_t *body, struct exec_body *b)
{
	static const char *const known[] = {
		"code",       "argv",         "language", "rich",          "timeout",
		"cwd",        "env",          "user",     "stdin",         "stdin_base64",
		"context_id", "output_limit", "exec_id",  "queue_timeout", "output_limit_action",
		NULL};

	*b = (struct exec_body){.timeout = DEFAULT_EXEC_S,
				.queue_timeout = -1,
				.output_limit = DEFAULT_OUTPUT,
				.context = "default"};
	return fields_only(r, body, known) &&
	       fields_string(r, body, "code", &b->code, &b->code_len) &&
	       fields_array(r, body, "argv", LIMIT_ARGV, FRAME_PAYLOAD_MAX / 2, &b->argv) &&
	       fields_string(r, body, "language", &b->language, NULL) &&
	       fields_bool(r, body, "rich", &b->rich) &&
	       fields_number(r, body, "timeout", LIMIT_EXEC_S, &b->timeout) &&
	       fields_number(r, body, "queue_timeout", LIMIT_EXEC_S, &b->queue_timeout) &&
	       fields_path(r, body, "cwd", &b->cwd) && fields_env(r, body, "env", &b->env) &&
	       fields_user(r, body, "user", &b->user) &&
	       fields_string(r, body, "stdin", &b->text, &b->text_len) &&
	       fields_string(r, body, "stdin_base64", &b->base64, &b->base64_len) &&
	       fields_string(r, body, "context_id", &b->context, NULL) &&
	       fields_int(r, body, "output_limit", LIMIT_OUTPUT_MIN, LIMIT_OUTPUT_MAX,
			  &b->output_limit) &&
	       fields_string(r, body, "output_limit_action", &b->action, NULL) &&
	       fields_string(r, body, "exec_id", &b->exec_id, NULL);
}

/* What is run, and as what. */
static bool exec_what(struct request *r, struct exec_body *b)
{
	static const char *const languages[] = {"python", "bash", "javascript"};

	if (b->argv && (b->code || b->language)) {
		reply_invalid(r, "argv", "argv is a program of its own: it goes without %s",
			      b->code ? "code" : "language");
		return false;
	}
	if (b->argv) {
		b->language = "argv";
		b->code = "";
		if (json_string_length(json_array_get(b->argv, 0)) > 0)
			return true;
		reply_invalid(r, "argv", "argv must begin with the name of a program");
		return false;
	}
	if (!b->code) {
		reply_invalid(r, "code", "code is missing");
		return false;
	}
	if (!b->language)
		b->language = "python";
	for (size_t i = 0; i < ARRAY_SIZE(languages); i++) {
		if (strcmp(b->language, languages[i]) != 0)
			continue;
		b->language = languages[i]; /* a constant, not the body's */
		return true;
	}
	reply_invalid(r, "language",
		      "unknown language \"%.64s\"; there are: python, bash, javascript",
		      b->language);
	return false;
}

static bool exec_fields(struct request *r, const json_t *body, struct exec_body *b)
{
	if (!exec_members(r, body, b) || !exec_what(r, b))
		return false;
	if (b->text && b->base64) {
		reply_invalid(r, "stdin", "stdin and stdin_base64 exclude each other");
		return false;
	}
	if (!ids_name_valid(b->context)) {
		reply_invalid(r, "context_id",
			      "context_id must be 1 to 64 of A-Z, a-z, 0-9, _ and -");
		return false;
	}
	if (b->action && strcmp(b->action, "truncate") != 0 && strcmp(b->action, "end") != 0) {
		reply_invalid(r, "output_limit_action",
			      "output_limit_action must be \"truncate\" or \"end\"");
		return false;
	}
	if (b->exec_id && !ids_name_valid(b->exec_id)) {
		reply_invalid(r, "exec_id", "exec_id must be 1 to 64 of A-Z, a-z, 0-9, _ and -");
		return false;
	}
	return true;
}

/* Payload of the EXEC frame: everything but the code. */
static char *exec_head(const struct exec_body *b, const struct exec_params *p, uint32_t slack_s)
{
	bool python = strcmp(b->language, "python") == 0;
	json_t *o = json_pack("{s:s, s:O*, s:s*, s:s*, s:O*, s:s*, s:I, s:I, s:I, s:s*, s:b}",
			      "language", b->language, "argv", b->argv, "context",
			      python ? b->context : NULL, "cwd", b->cwd, "env", b->env, "user",
			      b->user, "timeout_ms", (json_int_t)p->timeout_ms, "grace_ms",
			      (json_int_t)slack_s * 1000, "output_limit", b->output_limit,
			      "output_limit_action", b->action, "stdin", p->has_stdin);
	char *text = json_text(o);

	json_decref(o);
	return text;
}

static bool exec_stdin(struct request *r, const struct exec_body *b, struct exec_params *p)
{
	ssize_t n;

	p->has_stdin = b->text || b->base64;
	p->stdin_data = (const uint8_t *)b->text;
	p->stdin_len = b->text_len;
	if (!b->base64)
		return true;
	p->stdin_own = malloc(b->base64_len + 1);
	if (!p->stdin_own) {
		reply_json(r, 500, NULL);
		return false;
	}
	n = base64_decode(p->stdin_own, b->base64, b->base64_len);
	if (n < 0) {
		reply_invalid(r, "stdin_base64", "stdin_base64 is not base64");
		return false;
	}
	p->stdin_data = p->stdin_own;
	p->stdin_len = (size_t)n;
	return true;
}

/* The body becomes p. False: answered. */
static bool exec_params(struct request *r, struct sandbox *sb, const struct exec_body *b,
			struct exec_params *p)
{
	p->code = b->code;
	p->code_len = b->code_len;
	p->rich = b->rich;
	p->language = b->language;
	p->timeout_ms = (uint64_t)(b->timeout * 1000);
	if ((double)p->timeout_ms < b->timeout * 1000)
		p->timeout_ms++; /* 0 would be none */
	p->queue_s = b->queue_timeout;
	p->output_limit = (uint64_t)b->output_limit;
	snprintf(p->context, sizeof(p->context), "%s", b->context);
	if (b->exec_id) {
		snprintf(p->id, sizeof(p->id), "%s", b->exec_id);
	} else {
		memcpy(p->id, "exec_", 5);
		ids_random_hex(p->id + 5, 12);
	}
	if (!exec_stdin(r, b, p))
		return false;
	p->head = exec_head(b, p, sb->d->config.exec_slack_s);
	p->head_len = p->head ? strlen(p->head) : 0;
	if (!p->head)
		reply_json(r, 500, NULL);
	else if (p->head_len > FRAME_PAYLOAD_MAX)
		reply_invalid(r, b->argv ? "argv" : "env",
			      "argv, env and cwd are too large together");
	else
		return true;
	return false;
}

void api_exec(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	struct exec_params p = {0};
	struct exec_body b;
	json_t *body;
	bool ok;

	if (!sb)
		return;
	body = fields_parse(r, false);
	if (!body)
		return;
	ok = exec_fields(r, body, &b) && exec_params(r, sb, &b, &p);
	/* While it waits it keeps what it will send, and nothing else of the body. */
	p.code_text = json_incref(json_object_get(body, "code"));
	p.stdin_text = json_incref(json_object_get(body, "stdin"));
	json_decref(body);
	if (ok)
		exec_submit(sb, r, &p);
	else
		exec_params_free(&p);
}

void api_exec_list(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);

	if (sb)
		reply_json(r, 200, exec_list(sb));
}

void api_exec_interrupt(struct request *r)
{
	static const char *const known[] = {"escalate", NULL};
	static const char *const states[] = {[EXEC_IS_QUEUED] = "queued",
					     [EXEC_IS_RUNNING] = "running",
					     [EXEC_HAS_ENDED] = "ended"};
	struct sandbox *sb = api_find_sandbox(r);
	json_t *body = sb ? fields_parse(r, true) : NULL;
	enum exec_found found;
	bool escalate = false, ok;

	if (!body)
		return;
	ok = fields_only(r, body, known) && fields_bool(r, body, "escalate", &escalate);
	json_decref(body);
	if (!ok)
		return;
	found = exec_interrupt(sb, r->match.other, escalate);
	if (found == EXEC_UNKNOWN)
		reply_error(r, 404, "exec_not_found", "no such command in this sandbox", NULL,
			    NULL);
	else
		reply_json(
			r, 200,
			json_pack("{s:s, s:s}", "exec_id", r->match.other, "state", states[found]));
}
