/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Table from the agent's words to HTTP. Stateless.
 */
#include "daemon/agent_failure.h"
#include "daemon/agent_client.h"
#include "lib/cleanup.h"
#include "daemon/limits.h"
#include "lib/json_safe.h"
#include "lib/plain.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const struct {
	const char *word, *code, *field;
	unsigned int status;
} table[] = {
	{"bad_request", "invalid_request", NULL, 400},
	{"not_found", "file_not_found", "path", 404},
	{"is_directory", "is_directory", "path", 400},
	{"not_a_file", "not_a_file", "path", 400},
	{"not_a_directory", "not_a_directory", "path", 400},
	{"permission_denied", "permission_denied", "path", 403},
	{"no_space", "disk_full", NULL, 413},
	{"too_many", "too_many_requests", NULL, 429},
	{"busy", "sandbox_busy", NULL, 409},
	{"exists", "exists", "path", 409},
	{"not_empty", "not_empty", "path", 409},
	{"io_error", "io_error", NULL, 500},
	{"ended", "command_ended", NULL, 409},
	{"closed", "stdin_closed", NULL, 409},
	{"upload_busy", "upload_busy", "upload_id", 409},
	{"wrong_offset", "wrong_offset", "offset", 409},
};

void agent_failure_text(char *out, size_t len, const char *text)
{
	snprintf(out, len, "%s", text);
	plain_text(out, ' ', "");
}

void agent_failure_parse(const struct frame *f, struct agent_failure *out)
{
	json_t *o = json_safe_load_few((const char *)f->payload, f->len, LIMIT_AGENT_VALUES, 0);
	const char *word = json_string_value(json_object_get(o, "code"));
	const char *text = json_string_value(json_object_get(o, "message"));
	const char *none = o || !json_safe_lacked()
				   ? "the guest's agent reported an error without a reason"
				   : agent_error_text(-ENOMEM);

	*out = (struct agent_failure){.status = 502, .code = "agent_error"};
	agent_failure_text(out->message, sizeof(out->message), text && *text ? text : none);
	for (size_t i = 0; word && i < ARRAY_SIZE(table); i++) {
		if (strcmp(word, table[i].word) == 0) {
			out->word = table[i].word;
			out->status = table[i].status;
			out->code = table[i].code;
			out->field = table[i].field;
		}
	}
	json_decref(o);
}

bool agent_failure_is(const struct agent_failure *why, const char *word)
{
	return why->word && strcmp(why->word, word) == 0;
}

static bool begins_with(const char *s, const char *with)
{
	return strncmp(s, with, strlen(with)) == 0;
}

/* The words that the agent has for it. */
static bool is_about_cwd(const char *message)
{
	return begins_with(message, "cwd") || strstr(message, "working directory");
}

void agent_failure_of_exec(struct agent_failure *why, const char *language)
{
	if (begins_with(why->message, "no such context")) {
		why->status = 404;
		why->code = "context_not_found";
		why->field = "context_id";
		return;
	}
	if (!why->field)
		return;
	why->status = 400;
	why->code = "invalid_request";
	why->field = "cwd";
	if (is_about_cwd(why->message))
		return;
	if (strcmp(language, "argv") == 0)
		why->field = "argv";
	else if (strcmp(language, "javascript") == 0)
		why->field = "language";
}
