/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare box run`: one script in a fresh emulated host, for tests that
 * must look at the host's own processes and files. Its output comes as it is
 * made, its exit status is ours. Nothing is kept.
 */
#include "cli/box.h"
#include "cli/boxhost.h"
#include "cli/cli.h"
#include "cli/signals.h"
#include "cli/tsc.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

/* The script did not run, or its end is unknown. */
#define EXIT_NO_SCRIPT 125

static const char help[] =
	"usage: podflare box run [options] SCRIPT [ARGUMENTS]\n"
	"\n"
	"Boots the emulated host and runs SCRIPT in it with a shell (busybox), as root, instead\n"
	"of the daemon. Its stdout, stderr and exit status become those of this command; 125\n"
	"means that it could not be run to its end. Inside are podflare-vmm and podflared;\n"
	"`box-podflared [options]` starts the daemon as `podflare serve` does. There is no\n"
	"network but lo.\n"
	"\n"
	"  --disk FILE         a disk image: /dev/podflare/disk0, disk1...; written to if the\n"
	"                      file is writable\n"
	"  --add FILE          a file for the script's working directory, under its own name\n"
	"  --box-memory MIB    memory of the emulated host\n"
	"  --timeout SECONDS   end it after this time\n";

enum { OPT_DISK = 1, OPT_ADD, OPT_MEMORY, OPT_TIMEOUT, OPT_HELP };

static const struct option options[] = {
	{"disk", required_argument, NULL, OPT_DISK},
	{"add", required_argument, NULL, OPT_ADD},
	{"box-memory", required_argument, NULL, OPT_MEMORY},
	{"timeout", required_argument, NULL, OPT_TIMEOUT},
	{"help", no_argument, NULL, OPT_HELP},
	{0},
};

#define FILES_MAX 32

struct box_run {
	struct paths paths;
	struct templates templates;
	struct qemu_config config;
	uint64_t memory_mib, timeout_s;
	const char *files[FILES_MAX];
	size_t nfiles, ndisks;
	char **argv; /* script and arguments */
	size_t argc;
	bool help;

	struct loop loop;
	struct box box;
	struct signals signals;
	struct loop_timer timer;
	bool exited, timed_out;
	int status;
};

static int add_disk(struct box_run *r, const char *path, struct err *err)
{
	char serial[16];

	if (access(path, R_OK) < 0)
		return err_set(err, errno, "cannot read the disk image %s", path);
	snprintf(serial, sizeof(serial), "disk%zu", r->ndisks++);
	return qemu_add_disk(&r->config, serial, path, access(path, W_OK) < 0, err);
}

static int read_option(struct box_run *r, int opt, char **argv, struct err *err)
{
	switch (opt) {
	case OPT_DISK:
		return add_disk(r, optarg, err);
	case OPT_ADD:
		if (r->nfiles == FILES_MAX)
			return err_text(err, E2BIG, "at most %d files can be added", FILES_MAX);
		r->files[r->nfiles++] = optarg;
		return 0;
	case OPT_MEMORY:
		return cli_parse_number("--box-memory", optarg, 256, BOXHOST_MEMORY_MAX,
					&r->memory_mib, err);
	case OPT_TIMEOUT:
		return cli_parse_number("--timeout", optarg, 1, 86400, &r->timeout_s, err);
	case OPT_HELP:
		r->help = true;
		return 0;
	case ':':
		return err_text(err, EINVAL, "%s needs a value", argv[optind - 1]);
	default:
		return err_text(err, EINVAL, "unknown option %s", argv[optind - 1]);
	}
}

static int read_options(struct box_run *r, int argc, char **argv, struct err *err)
{
	int opt, rc = 0;

	opterr = 0;
	while (rc == 0 && (opt = getopt_long(argc, argv, "+:", options, NULL)) != -1)
		rc = read_option(r, opt, argv, err);
	if (rc < 0 || r->help)
		return rc;
	if (optind == argc)
		return err_text(err, EINVAL, "which script? podflare box run SCRIPT");
	r->argv = argv + optind;
	r->argc = (size_t)(argc - optind);
	return 0;
}

static void on_report(void *arg, const char *line)
{
	struct box_run *r = arg;

	if (sscanf(line, "exit %d", &r->status) == 1)
		r->exited = true;
	else if (strncmp(line, "failed ", 7) == 0)
		cli_say("the emulated host: %s", line + 7);
}

static void on_ended(void *arg)
{
	struct box_run *r = arg;

	loop_quit(&r->loop);
}

static const struct box_events events = {
	.report = on_report,
	.output = NULL,    /* bytes go straight to our stdout */
	.forwarded = NULL, /* no port is ever forwarded */
	.ended = on_ended,
};

static void on_signal(struct signals *sig)
{
	struct box_run *r = sig->arg;

	box_kill(&r->box);
}

static void on_timer(struct loop_timer *t)
{
	struct box_run *r = t->arg;

	r->timed_out = true;
	box_kill(&r->box);
}

/* A script that cannot be read is refused before anything is started. */
static int check_files(const struct box_run *r, struct err *err)
{
	if (access(r->argv[0], R_OK) < 0)
		return err_set(err, errno, "cannot read the script %s", r->argv[0]);
	for (size_t i = 0; i < r->nfiles; i++)
		if (access(r->files[i], R_OK) < 0)
			return err_set(err, errno, "cannot read %s", r->files[i]);
	return 0;
}

static int give_orders(struct box_run *r, struct err *err)
{
	int rc = box_give_file(&r->box, "script", r->argv[0], err);

	for (size_t i = 0; rc == 0 && i < r->nfiles; i++) {
		const char *slash = strrchr(r->files[i], '/');

		rc = box_give_file(&r->box, slash ? slash + 1 : r->files[i], r->files[i], err);
	}
	if (rc == 0)
		rc = boxhost_give_templates(&r->box, &r->templates, err);
	if (rc == 0)
		rc = box_give_mode(&r->box, "run", err);
	if (rc == 0)
		rc = box_give_args(&r->box, r->argv + 1, r->argc - 1, err);
	return rc == 0 ? box_go(&r->box, err) : rc;
}

static int start(struct box_run *r, struct err *err)
{
	struct host_facts facts;
	struct tsc_reading tsc;
	int rc = paths_find(&r->paths, err);

	tsc_begin(&tsc);
	r->config.paths = &r->paths;
	if (rc == 0)
		rc = paths_check(&r->paths, true, err);
	if (rc == 0)
		rc = check_files(r, err);
	if (rc == 0 && !r->templates.list)
		rc = templates_find(&r->templates, &r->paths, err);
	if (rc == 0)
		rc = boxhost_add_disks(&r->config, &r->templates, err);
	if (rc < 0)
		return rc;
	host_read_memory(&facts);
	rc = boxhost_memory(&facts, r->memory_mib, &r->config.memory_mib, err);
	r->config.tsc_khz = tsc_khz(&tsc);
	if (rc == 0)
		rc = box_start(&r->box, &r->loop, &r->config, NULL, &events, r, err);
	if (rc < 0)
		return rc;
	rc = give_orders(r, err);
	if (rc < 0)
		box_free(&r->box);
	else if (r->timeout_s)
		loop_timer_set(&r->loop, &r->timer, r->timeout_s * 1000000000ull);
	return rc;
}

static int conclude(const struct box_run *r)
{
	char tail[CONLOG_TAIL];

	if (r->exited)
		return r->status;
	if (r->signals.count)
		return 128 + r->signals.last;
	if (r->timed_out)
		cli_say("the script was ended after %u seconds", (unsigned int)r->timeout_s);
	else
		cli_say("the emulated host ended before the script did");
	conlog_last_lines(&r->box.console, 60, tail, sizeof(tail));
	if (tail[0])
		cli_say("end of its console log:\n%s", tail);
	return EXIT_NO_SCRIPT;
}

static int box_run(struct box_run *r)
{
	struct err err = {0};
	size_t disks = r->config.ndisks; /* start() adds its own */
	unsigned int tries = 0;
	int status = EXIT_NO_SCRIPT, rc = loop_init(&r->loop);

	if (rc < 0) {
		cli_say("cannot make an event loop: %s", strerror(-rc));
		return EXIT_NO_SCRIPT;
	}
	r->signals = (struct signals){.fd = -1, .fn = on_signal, .arg = r};
	r->timer = (struct loop_timer){.fn = on_timer, .arg = r};
	rc = signals_start(&r->signals, &r->loop, &err);
	while (rc == 0) {
		rc = start(r, &err);
		if (rc < 0)
			break;
		rc = loop_run(&r->loop);
		loop_timer_cancel(&r->timer);
		if (rc == 0 && !r->signals.count && !r->timed_out && box_retry(&r->box, &tries)) {
			r->config.ndisks = disks;
			continue;
		}
		status = rc < 0 ? EXIT_NO_SCRIPT : conclude(r);
		box_free(&r->box);
		break;
	}
	if (rc < 0 && err.num)
		cli_say("%s", err.msg);
	signals_stop(&r->signals);
	loop_free(&r->loop);
	templates_free(&r->templates);
	return status;
}

int verb_box(int argc, char **argv)
{
	_cleanup_free struct box_run *r = calloc(1, sizeof(*r));
	struct err err = {0};
	int rc;

	if (argc > 1 && strcmp(argv[1], "--help") == 0) {
		fputs(help, stdout);
		return CLI_OK;
	}
	if (argc < 2 || strcmp(argv[1], "run") != 0)
		return cli_usage_error("box",
				       "usage: podflare box run [options] SCRIPT [ARGUMENTS]");
	if (!r) {
		cli_say("no memory");
		return EXIT_NO_SCRIPT;
	}
	rc = read_options(r, argc - 1, argv + 1, &err);
	if (rc == 0 && r->help) {
		fputs(help, stdout);
		return CLI_OK;
	}
	if (rc < 0)
		return cli_usage_error("box", "%s", err.msg);
	return box_run(r);
}
