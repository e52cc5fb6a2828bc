/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `podflare serve` in emulated mode: starts the emulated host, waits for the
 * daemon's word that it is ready, opens the port, passes log lines on, and
 * stops everything on a signal. One thread, one loop; the port is reserved
 * from the start and opened only when there is something behind it.
 */
#include "cli/box.h"
#include "cli/boxdisk.h"
#include "cli/boxhost.h"
#include "cli/cli.h"
#include "cli/ownranges.h"
#include "cli/qemu_jail.h"
#include "cli/serve.h"
#include "cli/signals.h"
#include "lib/io.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define READY_LIMIT_MS 300000 /* a first start on a busy machine takes a minute at most */
#define DAEMON_PORT    7070   /* inside; see box/box-podflared */

extern char **environ;

struct serve_box {
	struct serve *serve;
	struct loop loop;
	struct box box;
	struct signals signals;
	struct loop_timer ready_timer;
	int port_fd;
	bool ready;
	bool exited;     /* the daemon's end was reported */
	int exit_status; /* and this was it */
	bool failed;
};

static double seconds_since_start(const struct serve_box *s)
{
	return (double)(io_now_ns() - s->serve->start_ns) / 1e9;
}

/* Says why and stops; the exit status will be CLI_FAILED. */
static void give_up(struct serve_box *s, const char *why)
{
	if (!s->failed)
		cli_say("%s", why);
	s->failed = true;
	box_stop(&s->box);
}

static void on_report(void *arg, const char *line)
{
	struct serve_box *s = arg;

	if (strcmp(line, "booted") == 0) {
		cli_say("the emulated host is up (%.1f s), starting the daemon",
			seconds_since_start(s));
	} else if (sscanf(line, "exit %d", &s->exit_status) == 1) {
		s->exited = true;
	} else if (strncmp(line, "failed ", 7) == 0) {
		cli_say("the emulated host: %s", line + 7);
		s->failed = true;
	}
}

/* The daemon's stdout has one line: that it is ready. */
static void on_output(void *arg, const char *line)
{
	struct serve_box *s = arg;
	int rc;

	if (strncmp(line, "podflared: ready ", 17) != 0) {
		cli_say("%s", line);
		return;
	}
	rc = addr_let_in(s->port_fd);
	if (rc < 0)
		cli_say("cannot let QEMU have the port: %s", strerror(-rc));
	box_forward(&s->box, s->serve->addr.host, s->serve->addr.port, DAEMON_PORT);
}

static void on_forwarded(void *arg, const char *failure)
{
	struct serve_box *s = arg;
	char text[512];

	if (failure) {
		snprintf(text, sizeof(text), "cannot open %s: %s", s->serve->addr.text, failure);
		give_up(s, text);
		return;
	}
	loop_timer_cancel(&s->ready_timer);
	s->ready = true;
	printf("podflare: ready on http://%s (%.1f s)\n", s->serve->addr.text,
	       seconds_since_start(s));
	fflush(stdout);
}

static void on_ended(void *arg)
{
	struct serve_box *s = arg;

	loop_quit(&s->loop);
}

static void on_signal(struct signals *sig)
{
	struct serve_box *s = sig->arg;

	if (sig->count == 1) {
		cli_say("stopping");
		box_stop(&s->box);
	} else {
		box_kill(&s->box);
	}
}

static void on_ready_timer(struct loop_timer *t)
{
	give_up(t->arg, "the daemon did not get ready within five minutes, stopping");
}

static const struct box_events events = {
	.report = on_report,
	.output = on_output,
	.forwarded = on_forwarded,
	.ended = on_ended,
};

/* The daemon's environment: everything of ours, except what is another inside: address and files.
 */
static int give_environment(struct box *b, struct err *err)
{
	char name[64];

	for (char **e = environ; *e; e++) {
		size_t len = strcspn(*e, "=");
		int rc;

		if (strncmp(*e, "PODFLARE_", 9) != 0 || len >= sizeof(name) || !(*e)[len] ||
		    strspn(*e, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") != len ||
		    strncmp(*e, "PODFLARE_HOSTD_ADDR=", 20) == 0 ||
		    strncmp(*e, "PODFLARE_EGRESS_CONFIG=", 23) == 0)
			continue;
		memcpy(name, *e, len);
		name[len] = '\0';
		rc = box_give_env(b, name, *e + len + 1, err);
		if (rc < 0)
			return rc;
	}
	return 0;
}

/*
 * The daemon's options: by which address it is known out here, and what came behind "--". An
 * operator's file that could not be read is named all the same: there is none of that name inside,
 * so that the daemon knows that it must not allow anything.
 */
static int give_arguments(struct box *b, struct serve *sv, struct err *err)
{
	char option[] = "--public-addr", egress[] = "--egress-config";
	_cleanup_free char **argv = calloc(sv->ndaemon_args + 4, sizeof(*argv));
	size_t n = 0;

	if (!argv)
		return err_set(err, ENOMEM, "the daemon's arguments");
	argv[n++] = option;
	argv[n++] = sv->addr.text;
	if (sv->egress.path[0] && !sv->egress.data) {
		argv[n++] = egress;
		argv[n++] = sv->egress.path;
	}
	for (size_t i = 0; i < sv->ndaemon_args; i++)
		argv[n++] = sv->daemon_args[i];
	return box_give_args(b, argv, n, err);
}

/* The operator's configuration of egress, and what is this machine's own; box-podflared finds them.
 */
static int give_egress(struct box *b, const struct egressfile *f, struct err *err)
{
	_cleanup_free char *own = NULL;
	int rc = f->data ? box_give_data(b, "egress.json", f->data, f->len, err) : 0;

	if (rc == 0 && f->out)
		rc = ownranges_text(&own, err);
	return rc == 0 && own ? box_give_data(b, "own.json", own, strlen(own), err) : rc;
}

static int start(struct serve_box *s, struct err *err)
{
	struct serve *sv = s->serve;
	struct qemu_config config = {.paths = &sv->paths,
				     .network = sv->egress.out ? QEMU_OUTWARD : QEMU_INWARD};
	char disk[PATH_MAX], console[PATH_MAX + 16];
	int rc;

	if (sv->addr.ipv6)
		return err_text(err, EINVAL,
				"the emulated host can only be reached over IPv4: pass --addr "
				"127.0.0.1:%u",
				sv->addr.port);
	rc = s->port_fd < 0 ? addr_reserve(&sv->addr, &s->port_fd, err) : 0;
	config.port = sv->addr.port;
	if (rc == 0)
		rc = boxhost_memory(&sv->facts, sv->box_memory_mib, &config.memory_mib, err);
	if (rc == 0)
		rc = boxhost_add_disks(&config, &sv->templates, err);
	if (rc == 0)
		rc = boxdisk_prepare(sv->state, sv->box_disk_gib, disk, err);
	if (rc == 0)
		rc = qemu_add_disk(&config, "state", disk, false, err);
	if (rc < 0)
		return rc;
	boxdisk_tell_room(disk);
	snprintf(console, sizeof(console), "%s/box-console.log", sv->state);
	cli_say("starting the emulated host (1 processor, %u MiB; console: %s)", config.memory_mib,
		console);
	config.tsc_khz = tsc_khz(&sv->tsc);
	rc = box_start(&s->box, &s->loop, &config, console, &events, s, err);
	if (rc < 0)
		return rc;
	loop_timer_set(&s->loop, &s->ready_timer, READY_LIMIT_MS * 1000000ull);
	rc = box_give_mode(&s->box, "serve", err);
	if (rc == 0)
		rc = boxhost_give_templates(&s->box, &sv->templates, err);
	if (rc == 0)
		rc = give_egress(&s->box, &sv->egress, err);
	if (rc == 0)
		rc = give_environment(&s->box, err);
	if (rc == 0)
		rc = give_arguments(&s->box, sv, err);
	if (rc == 0)
		rc = box_go(&s->box, err);
	if (rc < 0)
		box_free(&s->box);
	return rc;
}

/* What to say and return once the machine is gone. */
static int conclude(struct serve_box *s)
{
	char tail[CONLOG_TAIL];

	if (s->signals.count && !s->failed && (s->exited || !s->box.started)) {
		if (s->exit_status == 0)
			return CLI_OK;
		cli_say("the daemon ended with status %d", s->exit_status);
		return CLI_FAILED;
	}
	if (s->exited)
		cli_say("the daemon ended by itself with status %d; its last messages are above",
			s->exit_status);
	else if (s->box.killed)
		cli_say("the emulated host was killed before the daemon had ended");
	else if (!s->failed)
		cli_say("the emulated host ended unexpectedly (QEMU %s %d)",
			WIFSIGNALED(s->box.wait_status) ? "was killed by signal"
							: "ended with status",
			WIFSIGNALED(s->box.wait_status) ? WTERMSIG(s->box.wait_status)
							: WEXITSTATUS(s->box.wait_status));
	if (!s->exited && !s->box.killed) {
		conlog_last_lines(&s->box.console, 60, tail, sizeof(tail));
		if (tail[0])
			cli_say("end of its console log:\n%s", tail);
	}
	return CLI_FAILED;
}

int serve_box(struct serve *sv)
{
	struct serve_box s = {.serve = sv, .port_fd = -1};
	struct err err = {0};
	char reason[256];
	unsigned int tries = 0;
	int status = CLI_FAILED, rc = loop_init(&s.loop);

	if (rc < 0) {
		cli_say("cannot make an event loop: %s", strerror(-rc));
		return CLI_FAILED;
	}
	/* Keys are in our memory while we live: no process of our user reads it, no core has it. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) {
		cli_say("PR_SET_DUMPABLE: %s", strerror(errno));
		loop_free(&s.loop);
		return CLI_FAILED;
	}
	if (host_has_hardware(&sv->facts))
		snprintf(reason, sizeof(reason), "--mode emulated was given");
	else
		host_reason(&sv->facts, reason, sizeof(reason));
	cli_say("running in an emulated host, because %s: ten to twenty times slower", reason);
	qemu_jail_tell();
	s.signals = (struct signals){.fd = -1, .fn = on_signal, .arg = &s};
	s.ready_timer = (struct loop_timer){.fn = on_ready_timer, .arg = &s};
	rc = signals_start(&s.signals, &s.loop, &err);
	while (rc == 0) {
		rc = start(&s, &err);
		if (rc < 0)
			break;
		rc = loop_run(&s.loop);
		if (rc == 0 && !s.signals.count && !s.failed && box_retry(&s.box, &tries))
			continue;
		status = rc < 0 ? CLI_FAILED : conclude(&s);
		box_free(&s.box);
		break;
	}
	if (rc < 0 && err.num)
		cli_say("%s", err.msg);
	signals_stop(&s.signals);
	loop_free(&s.loop);
	close_fd(&s.port_fd);
	return status;
}
