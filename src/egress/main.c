/* SPDX-License-Identifier: Apache-2.0 */
/*
 * podflare-egress: the allowlist proxy of one sandbox, and the only program of
 * the system that opens connections to the outside. Started by podflared with
 * the control socket as descriptor EGRESS_FD; ends with it.
 *
 * Before the jail: what needs the host's files (resolver's configuration, CAs,
 * users). After it: guests.
 */
#define _GNU_SOURCE
#include "egress/ctl.h"
#include "egress/jail.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "lib/log.h"
#include "proto/egress.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include <linux/close_range.h>

struct options {
	const char *user, *ca_file;
};

static const char usage[] =
	"usage: podflare-egress [--user NAME] [--ca-file FILE]\n"
	"\n"
	"The egress proxy of one sandbox. podflared starts it, with a control socket.\n"
	"\n"
	"  --user NAME     whom to become when started as root (default: nobody)\n"
	"  --ca-file FILE  CAs of destinations (default: /etc/ssl/certs/ca-certificates.crt)\n";

/* 0: go on; 1: done; -1: wrong */
static int parse_options(struct options *o, int argc, char **argv)
{
	static const struct option known[] = {
		{"user", required_argument, NULL, 'u'},
		{"ca-file", required_argument, NULL, 'c'},
		{"version", no_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	int c;

	*o = (struct options){"nobody", "/etc/ssl/certs/ca-certificates.crt"};
	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case 'u':
			o->user = optarg;
			break;
		case 'c':
			o->ca_file = optarg;
			break;
		case 'V':
			puts("podflare-egress " PODFLARE_VERSION);
			return 1;
		case 'h':
			fputs(usage, stdout);
			return 1;
		default:
			return -1;
		}
	}
	return optind == argc ? 0 : -1;
}

static int check_control_socket(void)
{
	int type = 0;
	socklen_t len = sizeof(type);

	if (getsockopt(EGRESS_FD, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_SEQPACKET)
		return -1;
	return 0;
}

/* What libraries would do with files when they are first used. */
static void warm_up(void)
{
	json_safe_begin();   /* policies hold secrets */
	json_object_seed(0); /* reads the kernel's random numbers */
	tzset();             /* reads the time zone, of which nothing here makes use */
}

static int run(const struct options *o, struct loop *loop, struct err *err)
{
	static struct conns conns; /* has a tunnel's chunk in it */
	struct jail_user user = {0};
	struct egress *e;
	struct ctl ctl;
	int rc = jail_find_user(o->user, &user, err);

	if (rc < 0)
		return rc;
	e = egress_new(loop, EGRESS_FD, o->ca_file, err);
	if (!e)
		return -err->num;
	rc = jail_enter(&user, err);
	if (rc == 0) {
		conns_init(&conns, loop, e);
		rc = ctl_init(&ctl, loop, e, &conns, EGRESS_FD);
		if (rc == 0)
			rc = loop_run(loop);
		if (rc == 0)
			rc = ctl.rc;
		conns_free(&conns);
		if (rc < 0)
			err_set(err, -rc, "it ends");
	}
	egress_free(e);
	return rc;
}

int main(int argc, char **argv)
{
	struct options o;
	struct loop loop;
	struct err err = {0};
	int rc = parse_options(&o, argc, argv);

	if (rc < 0)
		fputs(usage, stderr);
	if (rc)
		return rc < 0 ? 2 : 0;
	if (check_control_socket() < 0) {
		log_error("podflare-egress is started by podflared, not by hand");
		return 2;
	}
	/* The parent's end is this process's end: before the jail, and in it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGUSR1, SIG_IGN); /* a VMM may be able to send it to us (src/daemon/child.h) */
	if (close_range(EGRESS_FD + 1, ~0u, 0) < 0 || io_set_nonblock(EGRESS_FD, 1) < 0) {
		log_error("cannot prepare descriptors: %s", strerror(errno));
		return 1;
	}
	warm_up();
	rc = loop_init(&loop);
	if (rc < 0) {
		log_error("event loop: %s", strerror(-rc));
		return 1;
	}
	rc = run(&o, &loop, &err);
	loop_free(&loop);
	if (rc < 0)
		log_error("podflare-egress: %s", err.msg);
	return rc < 0 ? 1 : 0;
}
