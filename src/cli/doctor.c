/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare doctor`: runs all checks, prints what they found in plain words or
 * as JSON, and tells by its exit status whether podflare can run here at all;
 * with --security, whether this host's walls could be thicker.
 */
#include "cli/doctor.h"

#include "cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
	"usage: podflare doctor [--security] [--json] [--addr HOST:PORT] [--state DIR]\n"
	"\n"
	"Says what this machine can and cannot do for podflare, and what to do about it.\n"
	"Exit status 0: podflare can run here, in hardware or in emulated mode. 1: it cannot.\n"
	"\n"
	"  --security         instead: what the host does beside podflare that makes its walls\n"
	"                     thicker or thinner (docs/hardening.md). Exit status 0: nothing to\n"
	"                     be done\n"
	"  --json             one JSON object instead of text\n"
	"  --addr HOST:PORT   the address to check (default: $PODFLARE_HOSTD_ADDR or "
	"127.0.0.1:7070)\n"
	"  --state DIR        the state directory to check\n";

enum { OPT_JSON = 1, OPT_SECURITY, OPT_ADDR, OPT_STATE, OPT_HELP };

static const struct option options[] = {
	{"json", no_argument, NULL, OPT_JSON},       {"security", no_argument, NULL, OPT_SECURITY},
	{"addr", required_argument, NULL, OPT_ADDR}, {"state", required_argument, NULL, OPT_STATE},
	{"help", no_argument, NULL, OPT_HELP},       {0},
};

struct finding *doctor_add(struct doctor *d, enum finding_level level, const char *name)
{
	static struct finding dropped;
	struct finding *f = d->n < DOCTOR_FINDINGS_MAX ? &d->findings[d->n++] : &dropped;

	*f = (struct finding){.level = level, .name = name};
	return f;
}

void doctor_found(struct finding *f, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(f->found, sizeof(f->found), fmt, ap);
	va_end(ap);
}

void doctor_advise(struct finding *f, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(f->advice, sizeof(f->advice), fmt, ap);
	va_end(ap);
}

static const char *mode_of(const struct doctor *d)
{
	return d->hardware ? "hardware" : d->emulated ? "emulated" : "none";
}

static void print_findings(const struct doctor *d)
{
	static const char *const marks[] = {
		[FINDING_OK] = "ok  ", [FINDING_NOTE] = "note", [FINDING_FAIL] = "FAIL"};

	for (size_t i = 0; i < d->n; i++) {
		const struct finding *f = &d->findings[i];

		printf("%s  %-17s %s\n", marks[f->level], f->name, f->found);
		if (f->advice[0])
			printf("      %-17s -> %s\n", "", f->advice);
	}
}

static void print_text(const struct doctor *d)
{
	print_findings(d);
	if (d->hardware)
		printf("\nPodflare can run here in hardware mode.\n");
	else if (d->emulated)
		printf("\nPodflare can run here in emulated mode, ten to twenty times slower "
		       "than on a machine\nwith KVM, and with the walls that docs/threat-model.md "
		       "tells of.\n");
	else
		printf("\nPodflare cannot run here yet; see FAIL above.\n");
}

static void print_json_string(const char *s)
{
	putchar('"');
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < ' ')
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

static void print_json_findings(const struct doctor *d)
{
	static const char *const levels[] = {
		[FINDING_OK] = "ok", [FINDING_NOTE] = "note", [FINDING_FAIL] = "fail"};

	printf("\"findings\": [");
	for (size_t i = 0; i < d->n; i++) {
		const struct finding *f = &d->findings[i];

		printf("%s\n  {\"name\": \"%s\", \"level\": \"%s\", \"found\": ", i ? "," : "",
		       f->name, levels[f->level]);
		print_json_string(f->found);
		printf(", \"advice\": ");
		print_json_string(f->advice);
		putchar('}');
	}
	printf("\n]}\n");
}

static void print_json(const struct doctor *d)
{
	printf("{\"can_run\": %s, \"mode\": \"%s\", ",
	       d->hardware || d->emulated ? "true" : "false", mode_of(d));
	print_json_findings(d);
}

static int tell_security(struct doctor *d, bool json)
{
	size_t open = 0;

	doctor_check_security(d, "", geteuid() == 0);
	for (size_t i = 0; i < d->n; i++)
		open += d->findings[i].level != FINDING_OK;
	if (json) {
		printf("{\"open\": %zu, ", open);
		print_json_findings(d);
	} else {
		print_findings(d);
		if (open)
			printf("\n%zu of %zu subjects could be better; docs/hardening.md says why "
			       "and "
			       "when it matters.\n",
			       open, d->n);
		else
			printf("\nNothing to be done.\n");
	}
	return open ? CLI_FAILED : CLI_OK;
}

int verb_doctor(int argc, char **argv)
{
	static struct doctor d; /* large, and there is one */
	struct err err = {0};
	bool json = false, security = false;
	int opt;

	d.addr = getenv("PODFLARE_HOSTD_ADDR");
	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (opt) {
		case OPT_JSON:
			json = true;
			break;
		case OPT_SECURITY:
			security = true;
			break;
		case OPT_ADDR:
			d.addr = optarg;
			break;
		case OPT_STATE:
			d.state = optarg;
			break;
		case OPT_HELP:
			fputs(help, stdout);
			return CLI_OK;
		case ':':
			return cli_usage_error("doctor", "%s needs a value", argv[optind - 1]);
		default:
			return cli_usage_error("doctor", "unknown option %s", argv[optind - 1]);
		}
	}
	if (optind < argc)
		return cli_usage_error("doctor", "unexpected argument '%s'", argv[optind]);
	if (security)
		return tell_security(&d, json);
	if (paths_find(&d.paths, &err) < 0) {
		cli_say("%s", err.msg);
		return CLI_FAILED;
	}
	host_read_facts(&d.facts, true);
	doctor_check_processor(&d);
	doctor_check_tools(&d);
	doctor_check_templates(&d);
	doctor_check_system(&d);
	if (json)
		print_json(&d);
	else
		print_text(&d);
	return d.hardware || d.emulated ? CLI_OK : CLI_FAILED;
}
