/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kept commands: what is asked of them, and their description. All that the
 * agent says of one is checked; what clients get is built anew.
 */
#include "daemon/command.h"
#include "daemon/api.h"
#include "daemon/ask.h"
#include "daemon/exec.h"
#include "daemon/fields.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "lib/io.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* As many as an agent may name; it keeps 32. */
#define COMMANDS_MAX 256u
/* Of a program or code only a beginning is told; its bytes may have become U+FFFD. */
#define COMMAND_TEXT_MAX 1024u
#define COMMAND_CWD_MAX  (3 * LIMIT_PATH + 64)

static void reply_no_command(struct request *r)
{
	reply_error(r, 404, "command_not_found", "no such command", NULL, NULL);
}

struct sandbox *command_sandbox(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);

	if (!sb || ids_name_valid(r->match.other))
		return sb;
	reply_no_command(r);
	return NULL;
}

void command_refused(struct agent_failure *why)
{
	if (agent_failure_is(why, "not_found"))
		why->code = "command_not_found";
	why->field = NULL;
}

void command_reply_refused(struct request *r, const struct frame *f)
{
	struct agent_failure why;

	agent_failure_parse(f, &why);
	command_refused(&why);
	reply_error(r, why.status, why.code, why.message, NULL, NULL);
}

void command_reply_lost(struct request *r, int error)
{
	reply_error(r, 502, "agent_error",
		    error == -ETIMEDOUT ? "the guest's agent did not answer"
					: agent_error_text(error),
		    NULL, NULL);
}

void command_size_text(char out[COMMAND_SIZE_MAX], json_int_t cols, json_int_t rows)
{
	snprintf(out, COMMAND_SIZE_MAX,
		 "{\"cols\":%" JSON_INTEGER_FORMAT ",\"rows\":%" JSON_INTEGER_FORMAT "}", cols,
		 rows);
}

/* --- description ------------------------------------------------------------------------- */

static const char *one_of(const json_t *v, const char *const *words)
{
	const char *s = json_string_value(v);

	while (s && *words && strcmp(s, *words) != 0)
		words++;
	return s ? *words : NULL;
}

static bool number(const json_t *v, json_int_t min, json_int_t max)
{
	return json_is_integer(v) && json_integer_value(v) >= min && json_integer_value(v) <= max;
}

static bool text_ok(const json_t *v, size_t max)
{
	return json_is_string(v) && json_string_length(v) <= max;
}

static bool argv_ok(const json_t *argv)
{
	size_t i, bytes = 0;
	const json_t *v;

	if (!json_is_array(argv) || json_array_size(argv) > LIMIT_ARGV)
		return false;
	json_array_foreach(argv, i, v)
	{
		if (!text_ok(v, COMMAND_TEXT_MAX))
			return false;
		bytes += json_string_length(v);
	}
	return bytes <= COMMAND_TEXT_MAX;
}

/* {"start", "end"} of what is kept of an output. New reference or NULL. */
static json_t *span_json(const json_t *v)
{
	json_t *start = json_object_get(v, "start"), *end = json_object_get(v, "end");

	if (!number(start, 0, INT64_MAX) || !number(end, json_integer_value(start), INT64_MAX))
		return NULL;
	return json_pack("{s:O, s:O}", "start", start, "end", end);
}

/* How it ended. */
static bool add_end(json_t *o, const json_t *c)
{
	static const char *const reasons[] = {"exited",    "signaled", "timeout", "interrupted",
					      "cancelled", "oom",      NULL};
	json_t *code = json_object_get(c, "exit_code"), *sig = json_object_get(c, "signal");
	const char *reason = one_of(json_object_get(c, "reason"), reasons);

	if (!number(code, 0, 255) || !reason || (sig && !json_is_null(sig) && !number(sig, 1, 64)))
		return false;
	/* The same word as in an exit event. */
	if (strcmp(reason, "cancelled") == 0)
		reason = "interrupted";
	return json_object_set(o, "exit_code", code) == 0 &&
	       json_object_set_new(o, "termination_reason", json_string(reason)) == 0 &&
	       (!json_is_integer(sig) || json_object_set(o, "signal", sig) == 0);
}

/* The agent's words as those of the API. New reference, NULL when they are not what they should
 * be. */
static json_t *command_json(const json_t *c, int64_t now_ms)
{
	static const char *const states[] = {"running", "ended", NULL};
	static const char *const languages[] = {"bash", "javascript", "argv", NULL};
	json_t *id = json_object_get(c, "id"), *pid = json_object_get(c, "pid");
	json_t *argv = json_object_get(c, "argv"), *code = json_object_get(c, "code");
	json_t *age = json_object_get(c, "started_ms"), *cwd = json_object_get(c, "cwd");
	json_t *pty = json_object_get(c, "pty"), *o;
	const char *state = one_of(json_object_get(c, "state"), states);

	if (!json_is_string(id) || !ids_name_valid(json_string_value(id)) ||
	    !number(pid, 0, INT32_MAX) || !state || !json_is_boolean(pty) ||
	    (cwd && !text_ok(cwd, COMMAND_CWD_MAX)) || !number(age, 0, INT64_MAX / 2) ||
	    (argv ? !argv_ok(argv) : !text_ok(code, COMMAND_TEXT_MAX)))
		return NULL;
	o = json_pack("{s:O, s:O, s:s, s:s*, s:O, s:O*, s:I, s:O, s:o, s:o}", "command_id", id,
		      "pid", pid, "state", state, "language",
		      one_of(json_object_get(c, "language"), languages), argv ? "argv" : "code",
		      argv ? argv : code, "cwd", cwd, "started_at",
		      (json_int_t)(now_ms - json_integer_value(age)), "pty", pty, "stdout",
		      span_json(json_object_get(c, "stdout")), "stderr",
		      span_json(json_object_get(c, "stderr")));
	if (o && state == states[1] && !add_end(o, c)) {
		json_decref(o);
		return NULL;
	}
	return o;
}

/* All of them, checked. New reference or NULL. */
static json_t *commands_json(const json_t *answer)
{
	const json_t *commands = json_object_get(answer, "commands"), *c;
	int64_t now = (int64_t)(io_realtime_ns() / 1000000);
	json_t *all = json_array();
	size_t i;

	if (!json_is_array(commands) || json_array_size(commands) > COMMANDS_MAX) {
		json_decref(all);
		return NULL;
	}
	json_array_foreach(commands, i, c)
	{
		if (json_array_append_new(all, command_json(c, now)) < 0) {
			json_decref(all);
			return NULL;
		}
	}
	return all;
}

static bool list_ok(struct request *r, const json_t *answer)
{
	json_t *all = commands_json(answer);

	if (all)
		reply_json(r, 200, json_pack("{s:o}", "commands", all));
	return all != NULL;
}

static bool get_ok(struct request *r, const json_t *answer)
{
	json_t *all = commands_json(answer), *found = NULL, *c;
	size_t i;

	if (!all)
		return false;
	json_array_foreach(all, i,
			   c) if (strcmp(json_string_value(json_object_get(c, "command_id")),
					 r->match.other) == 0) found = c;
	if (found)
		reply_json(r, 200, json_incref(found));
	else
		reply_no_command(r);
	json_decref(all);
	return true;
}

static bool signal_ok(struct request *r, const json_t *answer)
{
	bool ended = json_is_true(json_object_get(answer, "ended"));

	reply_json(r, 200, json_pack("{s:b}", "ended", ended));
	return true;
}

static bool delete_ok(struct request *r, const json_t *answer)
{
	(void)answer;
	reply_empty(r);
	return true;
}

static const struct ask_ops list_ops = {.ok = list_ok};
static const struct ask_ops get_ops = {.ok = get_ok};
static const struct ask_ops signal_ops = {.ok = signal_ok, .refused = command_refused};
static const struct ask_ops delete_ops = {.ok = delete_ok, .refused = command_refused};

/* --- endpoints --------------------------------------------------------------------------- */

void api_command_list(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);

	if (sb)
		ask_agent(r, sb, FRAME_COMMAND, json_pack("{s:s}", "op", "list"), &list_ops);
}

void api_command_get(struct request *r)
{
	struct sandbox *sb = command_sandbox(r);

	if (sb)
		ask_agent(r, sb, FRAME_COMMAND, json_pack("{s:s}", "op", "list"), &get_ops);
}

void api_command_delete(struct request *r)
{
	struct sandbox *sb = command_sandbox(r);

	if (sb)
		ask_agent(r, sb, FRAME_COMMAND,
			  json_pack("{s:s, s:s}", "op", "forget", "id", r->match.other),
			  &delete_ops);
}

/* Number of a signal by its name, with or without SIG; 0: none. */
static int signal_number(const char *name)
{
	static const struct {
		const char *name;
		int num;
	} table[] = {
		{"HUP", SIGHUP},   {"INT", SIGINT},       {"QUIT", SIGQUIT}, {"ILL", SIGILL},
		{"TRAP", SIGTRAP}, {"ABRT", SIGABRT},     {"BUS", SIGBUS},   {"FPE", SIGFPE},
		{"KILL", SIGKILL}, {"USR1", SIGUSR1},     {"SEGV", SIGSEGV}, {"USR2", SIGUSR2},
		{"PIPE", SIGPIPE}, {"ALRM", SIGALRM},     {"TERM", SIGTERM}, {"STKFLT", SIGSTKFLT},
		{"CHLD", SIGCHLD}, {"CONT", SIGCONT},     {"STOP", SIGSTOP}, {"TSTP", SIGTSTP},
		{"TTIN", SIGTTIN}, {"TTOU", SIGTTOU},     {"URG", SIGURG},   {"XCPU", SIGXCPU},
		{"XFSZ", SIGXFSZ}, {"VTALRM", SIGVTALRM}, {"PROF", SIGPROF}, {"WINCH", SIGWINCH},
		{"IO", SIGIO},     {"PWR", SIGPWR},       {"SYS", SIGSYS},
	};

	if (strncmp(name, "SIG", 3) == 0)
		name += 3;
	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		if (strcmp(name, table[i].name) == 0)
			return table[i].num;
	return 0;
}

/* 0: answered. */
static int signal_field(struct request *r, const json_t *body)
{
	const json_t *v = json_object_get(body, "signal");
	int num = 0;

	if (json_is_string(v))
		num = signal_number(json_string_value(v));
	else if (number(v, 1, 64))
		num = (int)json_integer_value(v);
	if (!num)
		reply_invalid(
			r, "signal",
			"signal must be a name, as TERM or SIGTERM, or a number from 1 to 64");
	return num;
}

void api_command_signal(struct request *r)
{
	static const char *const known[] = {"signal", "group", NULL};
	struct sandbox *sb = command_sandbox(r);
	json_t *body = sb ? fields_parse(r, false) : NULL;
	bool group = true;
	int num;

	if (body && fields_only(r, body, known) && fields_bool(r, body, "group", &group) &&
	    (num = signal_field(r, body)) != 0)
		ask_agent(r, sb, FRAME_COMMAND,
			  json_pack("{s:s, s:s, s:i, s:b}", "op", "signal", "id", r->match.other,
				    "signal", num, "group", group),
			  &signal_ops);
	json_decref(body);
}
