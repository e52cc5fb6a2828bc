/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare shell`: options, and the life of the sandbox and of the command
 * around the session. Stop signals are blocked from the beginning, so that a
 * sandbox that was made is deleted whatever happens.
 */
#include "cli/shell.h"

#include "cli/cli.h"
#include "cli/http_call.h"
#include "cli/terminal.h"
#include "lib/io.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

static const char help[] =
	"usage: podflare shell [--template NAME] [--keep]\n"
	"       podflare shell SANDBOX\n"
	"\n"
	"A login shell (bash) in a new sandbox, which is deleted when the shell ends, or in one\n"
	"that exists already and stays.\n"
	"\n"
	"  --template NAME   what the new sandbox is made from (default: default)\n"
	"  --keep            the new sandbox stays; its id is printed at the end\n"
	"\n"
	"On a terminal every key goes to the shell, Ctrl-C included; what always works is ~. at\n"
	"the start of a line, which leaves (~~ there is one ~). When stdin is no terminal, the\n"
	"shell gets it as it is, and ends at its end: podflare shell <script.sh\n"
	"\n"
	"The exit status is that of the shell; 255 when podflare itself failed, 128 + N after\n"
	"signal N.\n"
	"\n"
	"The daemon is $PODFLARE_HOSTD_URL, else $PODFLARE_HOST, else " ENDPOINT_DEFAULT ";\n"
	"its key is $PODFLARE_API_KEY.\n";

/* Not 1: that is what shells end with themselves. As ssh does it. */
#define EXIT_PODFLARE 255

/* Deleting waits for the sandbox's process to be gone. */
#define CALL_TIMEOUT_S 60

enum { OPT_TEMPLATE = 1, OPT_KEEP, OPT_HELP };

static const struct option options[] = {
	{"template", required_argument, NULL, OPT_TEMPLATE},
	{"keep", no_argument, NULL, OPT_KEEP},
	{"help", no_argument, NULL, OPT_HELP},
	{0},
};

struct choice {
	const char *template, *sandbox;
	bool keep, help;
};

static bool id_ok(const char *id)
{
	size_t len = strlen(id);

	return len > 0 && len <= SHELL_ID_MAX &&
	       strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") ==
		       len;
}

static int read_options(struct choice *c, int argc, char **argv, struct err *err)
{
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		switch (opt) {
		case OPT_TEMPLATE:
			c->template = optarg;
			break;
		case OPT_KEEP:
			c->keep = true;
			break;
		case 'h':
		case OPT_HELP:
			c->help = true;
			return 0;
		case ':':
			return err_text(err, EINVAL, "%s needs a value", argv[optind - 1]);
		default:
			return err_text(err, EINVAL, "unknown option %s", argv[optind - 1]);
		}
	}
	if (optind < argc)
		c->sandbox = argv[optind++];
	if (optind < argc)
		return err_text(err, EINVAL, "unexpected argument '%s'", argv[optind]);
	if (c->sandbox && !id_ok(c->sandbox))
		return err_text(err, EINVAL, "'%s' is not the id of a sandbox", c->sandbox);
	if (c->sandbox && (c->template || c->keep))
		return err_text(err, EINVAL, "%s is for a new sandbox, and %s exists already",
				c->template ? "--template" : "--keep", c->sandbox);
	return 0;
}

void shell_path(char out[SHELL_PATH_MAX], const struct shell *s, const char *behind)
{
	snprintf(out, SHELL_PATH_MAX, "/v1/sandboxes/%s/commands/%s%s", s->sandbox, s->command,
		 behind);
}

int shell_take_exit(struct shell_end *end, const json_t *event)
{
	const json_t *code = json_object_get(event, "exit_code");
	const char *reason = json_string_value(json_object_get(event, "termination_reason"));

	if (!code)
		code = json_object_get(event, "data");
	if (!json_is_integer(code))
		return -EPROTO;
	end->how = json_integer_value(code) < 0 ? SHELL_GONE : SHELL_EXITED;
	end->code = (int)(json_integer_value(code) & 0xff);
	snprintf(end->reason, sizeof(end->reason), "%s", reason ? reason : "unknown");
	for (char *c = end->reason; *c; c++) /* goes to a terminal */
		if (*c <= ' ' || *c > '~')
			*c = '?';
	return 0;
}

void shell_take_signal(struct shell_end *end, int stop_fd)
{
	struct signalfd_siginfo info = {.ssi_signo = SIGTERM};

	if (io_read_some(stop_fd, &info, sizeof(info)) < 0)
		info.ssi_signo = SIGTERM;
	end->how = SHELL_SIGNAL;
	end->code = (int)info.ssi_signo;
}

static int block_signals(int *out, struct err *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0 || signal(SIGPIPE, SIG_IGN) == SIG_ERR)
		return err_set(err, errno, "cannot set up signals");
	*out = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return *out < 0 ? err_set(err, errno, "cannot set up signals") : 0;
}

/* The member of an answer that is an id; it goes into paths. */
static int take_id(char out[SHELL_ID_MAX + 1], json_t *answer, const char *member, struct err *err)
{
	const char *id = json_string_value(json_object_get(answer, member));
	bool ok = id && id_ok(id);

	if (ok)
		strcpy(out, id);
	json_decref(answer);
	return ok ? 0 : err_text(err, EPROTO, "the daemon's answer has no %s", member);
}

static int make_sandbox(struct shell *s, const struct choice *c, struct err *err)
{
	json_t *body = c->template ? json_pack("{s:s}", "template", c->template) : json_object();
	struct http_call call = {
		.to = &s->to,
		.method = "POST",
		.path = "/v1/sandboxes",
		.body = body,
		.waiting = "starting a sandbox; the first one of a template takes a while",
		.stop_fd = s->stop_fd,
	};
	json_t *answer;
	int rc;

	if (!body)
		return err_text(err, EINVAL, "--template is not UTF-8");
	rc = http_call(&call, &answer, err);
	json_decref(body);
	return rc < 0 ? rc : take_id(s->sandbox, answer, "id", err);
}

static int make_command(struct shell *s, bool terminal, struct err *err)
{
	struct terminal_size size = terminal_get_size(STDIN_FILENO);
	json_t *body = terminal ? json_pack("{s:[s,s], s:{s:i, s:i}}", "argv", "bash", "-l", "pty",
					    "cols", (int)size.cols, "rows", (int)size.rows)
				: json_pack("{s:[s,s], s:b}", "argv", "bash", "-l", "stdin", 1);
	char path[SHELL_PATH_MAX];
	struct http_call call = {.to = &s->to,
				 .method = "POST",
				 .path = path,
				 .body = body,
				 .timeout_s = CALL_TIMEOUT_S,
				 .stop_fd = s->stop_fd};
	json_t *answer;
	int rc;

	if (!body)
		return err_set(err, ENOMEM, "the request");
	snprintf(path, sizeof(path), "/v1/sandboxes/%s/commands", s->sandbox);
	rc = http_call(&call, &answer, err);
	json_decref(body);
	return rc < 0 ? rc : take_id(s->command, answer, "command_id", err);
}

/* Deletes what is ours. Not stopped by the signal that made us leave. */
static int clean_up(const struct shell *s, bool sandbox, struct err *err)
{
	char path[SHELL_PATH_MAX];
	struct http_call call = {.to = &s->to,
				 .method = "DELETE",
				 .path = path,
				 .timeout_s = CALL_TIMEOUT_S,
				 .stop_fd = -1};

	if (sandbox)
		snprintf(path, sizeof(path), "/v1/sandboxes/%s", s->sandbox);
	else if (s->command[0])
		shell_path(path, s, "");
	else
		return 0;
	return http_call(&call, NULL, err);
}

/* The session, with all that it needs in the sandbox. */
static int session(struct shell *s, struct shell_end *end, struct err *err)
{
	bool terminal = isatty(STDIN_FILENO) == 1;
	int rc = make_command(s, terminal, err);

	if (rc == 0)
		rc = terminal ? shell_terminal(s, end, err) : shell_pipe(s, end, err);
	if (rc == -ECANCELED) {
		shell_take_signal(end, s->stop_fd);
		rc = 0;
	}
	return rc;
}

static int exit_status(const struct shell_end *end)
{
	switch (end->how) {
	case SHELL_EXITED:
		return end->code;
	case SHELL_SIGNAL:
		return 128 + end->code;
	case SHELL_GONE:
		cli_say("the shell is gone: %s", end->reason);
		break;
	case SHELL_LEFT:
	case SHELL_LOST:
		break;
	}
	return EXIT_PODFLARE;
}

static int run(struct shell *s, const struct choice *c)
{
	struct shell_end end = {.how = SHELL_LOST};
	bool mine = !c->sandbox;
	struct err err = {0};
	int rc = block_signals(&s->stop_fd, &err);

	if (rc == 0 && mine)
		rc = make_sandbox(s, c, &err);
	else if (rc == 0)
		strcpy(s->sandbox, c->sandbox);
	if (rc == -ECANCELED) {
		shell_take_signal(&end, s->stop_fd);
		return exit_status(&end);
	}
	if (rc < 0) {
		cli_say("%s", err.msg);
		return EXIT_PODFLARE;
	}
	rc = session(s, &end, &err);
	if (rc < 0)
		cli_say("%s", err.msg);
	/* A sandbox that ended by itself is only remembered, and forgotten by this. */
	if (clean_up(s, mine && !c->keep, &err) < 0 && mine && !c->keep)
		cli_say("the sandbox %s could not be deleted: %s", s->sandbox, err.msg);
	if (mine && c->keep)
		cli_say("the sandbox %s was kept; podflare shell %s goes back into it", s->sandbox,
			s->sandbox);
	return rc < 0 ? EXIT_PODFLARE : exit_status(&end);
}

int verb_shell(int argc, char **argv)
{
	struct shell s = {.stop_fd = -1};
	struct choice c = {0};
	struct err err = {0};
	int rc = read_options(&c, argc, argv, &err);

	if (rc == 0 && c.help) {
		fputs(help, stdout);
		return CLI_OK;
	}
	if (rc == 0)
		rc = endpoint_from_env(&s.to, &err);
	if (rc < 0)
		return cli_usage_error("shell", "%s", err.msg);
	endpoint_tell_key(&s.to);
	rc = run(&s, &c);
	close_fd(&s.stop_fd);
	return rc;
}
