/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes of podflare-egress. Invariant: a struct proxy in host->proxies has a pid
 * that is a child of ours and not yet reaped. Its end is told once: when its socket
 * closes, when it is killed, or when the process is gone, whichever comes first.
 */
#define _GNU_SOURCE
#include "daemon/egress/proxy.h"
#include "daemon/child.h"
#include "daemon/egress/audit_share.h"
#include "daemon/egress/host.h"
#include "daemon/egress/proxy_group.h"
#include "daemon/egress/proxy_impl.h"
#include "daemon/held.h"
#include "daemon/limits.h"
#include "lib/fdpass.h"
#include "lib/json_safe.h"
#include "lib/log.h"
#include "proto/egress.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* --- the end ----------------------------------------------------------------------------- */

static void close_ctl(struct proxy *p)
{
	int fd = p->ctl.fd;

	loop_del(&p->ctl);
	close_fd(&fd);
	p->ctl.fd = -1;
}

/* Told once. The object stays until the process is reaped. */
static void end(struct proxy *p, const char *reason)
{
	if (p->ended)
		return;
	p->ended = true;
	close_ctl(p);
	audit_lost(&p->host->audit, p->open);
	p->open = 0;
	/* Whatever it was waiting for: the process must go. */
	loop_timer_set(p->host->loop, &p->limit, PROXY_LEAVE_NS);
	if (p->owner && !p->leaving)
		p->ops->ended(p, reason);
	p->owner = NULL;
}

static void send_kill(struct proxy *p)
{
	if (p->proc.fd >= 0)
		pidfd_send_signal(p->proc.fd, SIGKILL, NULL, 0);
}

void proxy_kill(struct proxy *p, const char *reason)
{
	send_kill(p);
	end(p, reason);
}

void proxy_leave(struct proxy *p, bool owner)
{
	p->leaving = true;
	if (!owner)
		p->owner = NULL;
	if (p->ended)
		return;
	/* It sees the end of its orders, says what is over with it, and exits. */
	shutdown(p->ctl.fd, SHUT_WR);
	loop_timer_set(p->host->loop, &p->limit, PROXY_LEAVE_NS);
}

void proxy_drop(struct proxy *p)
{
	p->leaving = true;
	proxy_kill(p, "it is not needed any more");
}

static void on_limit(struct loop_timer *t)
{
	struct proxy *p = t->arg;

	if (p->ended || p->leaving)
		send_kill(p);
	else
		proxy_kill(p, p->ctl.fd < 0 ? "the egress proxy closed its control socket"
					    : "the egress proxy did not answer");
}

bool proxy_reap(struct proxy *p)
{
	siginfo_t si = {0};
	char text[160];
	int fd;

	if (p->group && proxy_group_moving(p->group))
		return false; /* its number must stay its own; on_moved() comes here again */
	proxy_poll(p);        /* its last words */
	if (waitid(P_PIDFD, (id_t)p->proc.fd, &si, WEXITED | WNOHANG) < 0)
		snprintf(text, sizeof(text), "the egress proxy was lost: %s", strerror(errno));
	else if (si.si_pid == 0)
		return true; /* it lives */
	else if (si.si_code == CLD_EXITED)
		snprintf(text, sizeof(text), "the egress proxy exited with status %d",
			 si.si_status);
	else if (!p->group || !proxy_group_oom_text(p->group, text, sizeof(text)))
		snprintf(text, sizeof(text), "the egress proxy was killed by signal %d (%s)",
			 si.si_status, strsignal(si.si_status));
	fd = p->proc.fd;
	loop_del(&p->proc);
	close_fd(&fd);
	p->proc.fd = -1;
	list_del(&p->link);
	p->host->nproxies--;
	if (p->group)
		proxy_group_end(p->group);
	end(p, text);
	audit_share_unref(p->share);
	held_give_place(&p->place);
	loop_timer_cancel(&p->limit);
	loop_defer_free(p->host->loop, p);
	return true;
}

static void on_proc(struct loop_src *src, uint32_t events)
{
	(void)events;
	proxy_reap(src->arg);
}

static void on_moved(void *owner, int rc, const char *text)
{
	struct proxy *p = owner;
	struct egress_host *h = p->host;

	loop_mod(&p->proc, EPOLLIN);
	if (rc < 0 && rc != -ESRCH) {
		log_warn("proxy %d of %s: %s", (int)p->pid, p->sandbox, text);
		proxy_kill(p, text);
	}
	proxy_reap(p);
	h->reap_again(h->reap_arg);
}

/* --- messages ---------------------------------------------------------------------------- */

static void broken(struct proxy *p, const char *what)
{
	char text[256];

	snprintf(text, sizeof(text), "the egress proxy broke its protocol (%s) and was ended",
		 what);
	log_warn("proxy %d of %s: %s", (int)p->pid, p->sandbox, text);
	proxy_kill(p, text);
}

/* At most so many messages, and no more behind so many bytes. */
static void take(struct proxy *p, unsigned int max, size_t max_bytes)
{
	char text[EGRESS_MSG_MAX];
	size_t bytes = 0;

	for (unsigned int i = 0; i < max && bytes < max_bytes && p->ctl.fd >= 0; i++) {
		size_t nfds = 0;
		ssize_t n = fdpass_recv(p->ctl.fd, text, sizeof(text), NULL, &nfds, MSG_DONTWAIT);
		const char *what;

		if (n == -EAGAIN)
			return;
		if (n == -EMSGSIZE || n == -EMFILE) {
			broken(p, "a message that is too long, or has a descriptor");
			return;
		}
		if (n == -ECONNRESET)
			continue; /* it has not read all that we sent: told once */
		if (n <= 0) {
			/* It is as good as gone; how it ended is known when it is reaped. */
			close_ctl(p);
			loop_timer_set(p->host->loop, &p->limit, PROXY_LEAVE_NS);
			return;
		}
		bytes += (size_t)n;
		what = proxy_message(p, text, (size_t)n);
		if (what)
			broken(p, what);
	}
}

static void on_ctl(struct loop_src *src, uint32_t events)
{
	(void)events;
	/* Bounded: one that floods us gets its turn again like everybody else. */
	take(src->arg, PROXY_TURN_MESSAGES, PROXY_TURN_BYTES);
}

void proxy_poll(struct proxy *p)
{
	/* More than its socket holds. */
	if (p->ctl.fd >= 0)
		take(p, PROXY_POLL_MESSAGES, PROXY_POLL_BYTES);
}

static int send_message(struct proxy *p, json_t *o, const int *fd)
{
	char *text = json_text(o);
	int rc = -ENOMEM;

	json_decref(o);
	if (p->ended || p->leaving || p->ctl.fd < 0)
		rc = -ENOTCONN;
	else if (text)
		rc = fdpass_send(p->ctl.fd, text, strlen(text), fd, fd ? 1 : 0);
	free(text);
	return rc;
}

/* An answer is due; of several, each has its time after the one before. */
static void await(struct proxy *p)
{
	if (!loop_timer_armed(&p->limit))
		loop_timer_set(p->host->loop, &p->limit, PROXY_ANSWER_NS);
}

int64_t proxy_policy(struct proxy *p, int fd)
{
	uint64_t serial = p->serial + 1;
	int rc = send_message(
		p, json_pack("{s:s, s:I}", "type", "policy", "serial", (json_int_t)serial), &fd);

	if (rc < 0)
		return rc;
	p->serial = serial;
	await(p);
	return (int64_t)serial;
}

int proxy_stream(struct proxy *p, const char *exec, int fd)
{
	int rc = send_message(p,
			      json_pack("{s:s, s:I, s:s?}", "type", "stream", "id",
					(json_int_t)(p->streams + 1), "exec", exec),
			      &fd);

	if (rc == 0)
		p->streams++;
	return rc;
}

int proxy_used(struct proxy *p, uint64_t bytes)
{
	json_int_t n = bytes < INT64_MAX ? (json_int_t)bytes : INT64_MAX;

	return send_message(p, json_pack("{s:s, s:I}", "type", "used", "bytes", n), NULL);
}

int proxy_test(struct proxy *p, const char *host, uint16_t port, const char *method,
	       const char *path)
{
	uint64_t serial = p->tests + 1;
	int rc = send_message(p,
			      json_pack("{s:s, s:I, s:s, s:i, s:s?, s:s?}", "type", "test",
					"serial", (json_int_t)serial, "host", host, "port",
					(int)port, "method", method, "path", path),
			      NULL);

	if (rc < 0)
		return rc;
	p->test = p->tests = serial;
	await(p);
	return 0;
}

/* --- start ------------------------------------------------------------------------------- */

/* The process is there: from here on it is watched, or it is ended. */
static int watch(struct proxy *p, int ctl)
{
	struct cgroups *groups = p->host->groups;
	_cleanup_fd int pidfd = pidfd_open(p->pid, 0);
	int rc = pidfd < 0 ? -errno : loop_add(p->host->loop, &p->ctl, ctl, EPOLLIN);

	if (rc == 0) {
		rc = loop_add(p->host->loop, &p->proc, pidfd, groups ? 0 : EPOLLIN);
		if (rc == 0 && groups) {
			p->group = proxy_group_new(groups, p, p->pid, on_moved);
			if (!p->group) {
				rc = -ENOMEM;
				loop_del(&p->proc);
			}
		}
		if (rc < 0)
			loop_del(&p->ctl);
	}
	if (rc == 0) {
		take_fd(&pidfd);
		return 0;
	}
	child_abandon(p->pid);
	return rc;
}

struct proxy *proxy_start(struct egress_host *h, const char *sandbox, const struct proxy_ops *ops,
			  void *owner, struct err *err)
{
	_cleanup_fd int peer = -1;
	struct proxy *p = calloc(1, sizeof(*p));
	int sv[2], rc;

	if (!p || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0) {
		err_set(err, p ? errno : ENOMEM, "cannot make a control socket for a proxy");
		free(p);
		return NULL;
	}
	peer = sv[1];
	p->host = h;
	p->ops = ops;
	p->owner = owner;
	snprintf(p->sandbox, sizeof(p->sandbox), "%s", sandbox);
	p->ctl = (struct loop_src){.fd = -1, .fn = on_ctl, .arg = p};
	p->proc = (struct loop_src){.fd = -1, .fn = on_proc, .arg = p};
	p->limit = (struct loop_timer){.fn = on_limit, .arg = p};
	rc = child_spawn(&p->pid, h->program, "podflare-egress", NULL, NULL, peer, &h->child);
	if (rc == 0)
		rc = watch(p, sv[0]);
	if (rc < 0) {
		err_set(err, -rc, "the egress proxy %s cannot be started", h->program);
		close(sv[0]);
		free(p);
		return NULL;
	}
	list_add_tail(&h->proxies, &p->link);
	h->nproxies++;
	return p;
}
