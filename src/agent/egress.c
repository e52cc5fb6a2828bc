/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of egress, and the process of the relay.
 *
 * One that dies is started again: at once if it had lived for a while, later
 * and later if not; then its ports are closed meanwhile, so that nobody waits
 * in front of them.
 */
#define _GNU_SOURCE
#include "agent/egress.h"
#include "agent/agent.h"
#include "agent/relay.h"
#include "agent/spawn.h"
#include "agent/stream.h"
#include "lib/io.h"
#include "lib/log.h"
#include "proto/guest.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define EGRESS_BACKLOG  128
#define EGRESS_LIVED_NS 1000000000ull
#define EGRESS_FIRST_NS 500000000ull
#define EGRESS_LAST_NS  32000000000ull

static void egress_on_reaped(struct reap_child *c, int wstatus);
static void egress_on_again(void *arg);

void egress_init(struct egress *e, struct agent *a, const struct egress_config *cfg,
		 const char *etc_dir, const char *run_dir)
{
	*e = (struct egress){.agent = a, .cfg = *cfg, .etc_dir = etc_dir, .run_dir = run_dir};
	e->listener[0] = e->listener[1] = -1;
	e->user = (struct user){.home = "/", .uid = GUEST_RELAY_UID, .gid = GUEST_RELAY_UID};
	e->user.change = a->user.change;
	e->child = (struct reap_child){.fn = egress_on_reaped, .arg = e};
	list_init(&e->child.link);
	alarm_init(&e->again, a, egress_on_again, e);
}

/* Refuses from here on, and resets what waits to be accepted, whoever holds a copy. */
static void egress_close_ports(struct egress *e)
{
	for (size_t i = 0; i < ARRAY_SIZE(e->listener); i++) {
		if (e->listener[i] >= 0)
			shutdown(e->listener[i], SHUT_RDWR);
		close_fd(&e->listener[i]);
	}
}

static int egress_open_port(uint16_t port, int *out, struct err *err)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr = {htonl(INADDR_LOOPBACK)},
	};
	_cleanup_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int one = 1;

	if (fd < 0)
		return err_set(err, errno, "cannot make a socket for the proxy port %u", port);
	/* Connections that are over, or an earlier relay's, do not keep the port. */
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, EGRESS_BACKLOG) < 0)
		return err_set(err, errno, "cannot listen on 127.0.0.1:%u for the egress proxy",
			       port);
	*out = take_fd(&fd);
	return 0;
}

static int egress_open_ports(struct egress *e, struct err *err)
{
	int rc = egress_open_port(e->cfg.http_port, &e->listener[0], err);

	if (rc == 0)
		rc = egress_open_port(e->cfg.socks_port, &e->listener[1], err);
	if (rc < 0)
		egress_close_ports(e);
	return rc;
}

/* Its clients are reset. Nothing of it is waited for: it does not run another instruction. */
static void egress_kill_relay(struct egress *e)
{
	alarm_cancel(&e->again);
	if (e->child.pid) {
		list_del(&e->child.link);
		kill(e->child.pid, SIGKILL);
		e->child.pid = 0;
	}
	if (e->cgroup)
		cgroup_kill(e->cgroup);
	cgroup_release(&e->agent->cgroups, e->cgroup);
	e->cgroup = NULL;
}

static int egress_start_relay(struct egress *e, struct err *err)
{
	char name[] = RELAY_NAME;
	_cleanup_free char *host = e->cfg.host ? strdup(e->cfg.host) : NULL;
	char *argv[] = {name, host, NULL}, *envp[] = {NULL};
	struct spawn sp = {
		.path = "/proc/self/exe",
		.argv = argv,
		.envp = envp,
		.user = &e->user,
		.cwd_fd = -1,
		.in_fd = e->listener[0],
		.out_fd = STDERR_FILENO,
		.err_fd = STDERR_FILENO,
		.extra_fd = e->listener[1],
	};
	pid_t pid;

	static_assert(RELAY_FD_HTTP == 0 && RELAY_FD_SOCKS == 3, "in_fd and extra_fd");
	e->cgroup = cgroup_new(&e->agent->cgroups, "relay");
	if (!e->cgroup)
		return err_set(err, errno, "cannot make a cgroup for the egress relay");
	sp.cgroup_fd = e->cgroup->dirfd;
	pid = spawn_process(&sp);
	if (pid < 0) {
		cgroup_release(&e->agent->cgroups, e->cgroup);
		e->cgroup = NULL;
		return err_set(err, -pid, "cannot start the egress relay");
	}
	e->start_ns = io_now_ns();
	e->child.pid = pid;
	reaper_watch(&e->agent->reaper, &e->child);
	return 0;
}

static void egress_start_later(struct egress *e)
{
	egress_close_ports(e);
	e->delay_ns = e->delay_ns ? e->delay_ns * 2 : EGRESS_FIRST_NS;
	if (e->delay_ns > EGRESS_LAST_NS)
		e->delay_ns = EGRESS_LAST_NS;
	alarm_set(&e->again, e->delay_ns);
}

static void egress_on_again(void *arg)
{
	struct egress *e = arg;
	struct err err;
	int rc = e->listener[0] < 0 ? egress_open_ports(e, &err) : 0;

	if (rc == 0)
		rc = egress_start_relay(e, &err);
	if (rc == 0)
		return;
	log_warn("%s", err.msg);
	egress_start_later(e);
}

static void egress_on_reaped(struct reap_child *c, int wstatus)
{
	struct egress *e = c->arg;

	c->pid = 0;
	egress_kill_relay(e);
	log_warn("the egress relay ended (%s %d)", WIFSIGNALED(wstatus) ? "signal" : "exit status",
		 WIFSIGNALED(wstatus) ? WTERMSIG(wstatus) : WEXITSTATUS(wstatus));
	if (io_now_ns() - e->start_ns < EGRESS_LIVED_NS) {
		egress_start_later(e);
		return;
	}
	e->delay_ns = 0;
	alarm_set(&e->again, 0); /* not while everything is frozen */
}

static void egress_off(struct egress *e)
{
	if (e->mode == EGRESS_OFF)
		return;
	egress_close_ports(e);
	egress_kill_relay(e);
	e->mode = EGRESS_OFF;
	egress_files_remove(e);
	free(take_ptr(e->ca));
}

static bool egress_same_files(const struct egress *e, const struct request_egress *r)
{
	return e->mode != EGRESS_OFF && !r->ca == !e->ca && (!r->ca || strcmp(r->ca, e->ca) == 0);
}

static int egress_describe(struct egress *e, const struct request_egress *r, struct err *err)
{
	char *ca = r->ca ? strdup(r->ca) : NULL;

	if (r->ca && !ca)
		return err_set(err, ENOMEM, "cannot keep the egress CA");
	free(e->ca);
	e->ca = ca;
	e->mode = ca ? EGRESS_INTERCEPTS : EGRESS_ON;
	return egress_files_write(e, err);
}

/* The way first: what a program is told of is there. */
static int egress_on(struct egress *e, struct err *err)
{
	int rc = e->listener[0] < 0 && !alarm_is_set(&e->again) ? egress_open_ports(e, err) : 0;

	if (rc == 0 && !e->child.pid && !alarm_is_set(&e->again)) {
		e->delay_ns = 0;
		rc = egress_start_relay(e, err);
	}
	return rc;
}

int egress_set(struct egress *e, const struct request_egress *r, struct err *err)
{
	int rc = 0;

	if (r->on)
		rc = egress_on(e, err);
	if (r->on && rc == 0)
		rc = egress_describe(e, r, err);
	if (rc < 0)
		e->mode = EGRESS_ON; /* so that all of it goes */
	if (rc < 0 || !r->on)
		egress_off(e);
	return rc;
}

int egress_renew(struct egress *e, const struct request_egress *r, struct err *err)
{
	bool same = r->on && egress_same_files(e, r);
	int rc;

	if (!same)
		egress_off(e);
	if (!r->on)
		return 0;
	egress_close_ports(e);
	egress_kill_relay(e);
	if (!same)
		return egress_set(e, r, err);
	rc = egress_on(e, err);
	if (rc < 0)
		egress_off(e);
	return rc;
}

void egress_request(struct stream *s, const struct request_egress *r)
{
	struct err err;

	if (egress_set(&s->agent->egress, r, &err) < 0)
		stream_fail(s, &err);
	else
		stream_final(s, FRAME_OK, json_object());
}
