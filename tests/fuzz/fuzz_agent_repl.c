/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile Python session, and a host that does things at bad moments: the
 * sessions of the agent, their cells, outputs, inputs and events, for real, but
 * for the process, which the input plays; and kept commands in the same way. It writes frames and
 * bytes to the control socket, output to the pipes, dies; the host starts calls, cancels,
 * interrupts, sends input, reads or not, goes away; time passes in jumps.
 *
 * Checked: no memory error and no leak, nothing but this process is signalled,
 * send buffers stay within their bound, an event in pieces is completed or
 * taken back, and when all have gone and died nothing is left of any cell. Egress comes and goes
 * meanwhile, and its relay, a process as well, dies.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/contexts.h"
#include "agent/renew.h"
#include "agent/spawn.h"
#include "agent/stream.h"
#include "lib/io.h"
#include "lib/log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SEND_BUFFER_MAX (384 * 1024)
#define HOSTS           3
#define SESSIONS        32
#define FIRST_PID       1000000000 /* beyond what the kernel gives */

struct session {
	int ctl, in, out, err;
	bool alive, killed, relay;
	struct reap_child *child; /* of the agent */
};

struct host {
	int fd; /* -1 = not connected */
	bool body;
	size_t pieces; /* bytes of an event that is not complete */
	uint8_t in[FRAME_HEADER_SIZE + FRAME_PAYLOAD_MAX];
	size_t len;
};

static struct agent a;
static struct session sessions[SESSIONS];
static int nsessions;
static bool no_more;
static struct host hosts[HOSTS];
/* Logs of calls. */
static const char log_dir[] = "/tmp/podflare-fuzz-logs";
/* Files of egress. */
static const char egress_dir[] = "/tmp/podflare-fuzz-run";

/* In place of spawn.c: processes that are played. */
int spawn_signal(pid_t pid, int sig)
{
	return kill(-pid, sig);
}

pid_t spawn_process(const struct spawn *s)
{
	struct session *p = &sessions[nsessions];

	if (no_more || nsessions == SESSIONS)
		return -EAGAIN;
	*p = (struct session){.alive = true};
	/* A command has no control socket, and a session no input. */
	p->ctl = s->extra_fd >= 0 ? fcntl(s->extra_fd, F_DUPFD_CLOEXEC, 3)
				  : open("/dev/null", O_WRONLY | O_CLOEXEC);
	p->in = s->in_fd >= 0 ? fcntl(s->in_fd, F_DUPFD_CLOEXEC, 3) : -1;
	assert(p->in < 0 || io_set_nonblock(p->in, 1) == 0);
	/* The relay's output is that of this process. */
	p->relay = s->out_fd == STDERR_FILENO;
	p->out = p->relay ? open("/dev/null", O_WRONLY | O_CLOEXEC)
			  : fcntl(s->out_fd, F_DUPFD_CLOEXEC, 3);
	p->err = p->relay ? open("/dev/null", O_WRONLY | O_CLOEXEC)
			  : fcntl(s->err_fd, F_DUPFD_CLOEXEC, 3);
	assert(p->ctl >= 0 && p->out >= 0 && p->err >= 0);
	assert(io_set_nonblock(p->ctl, 1) == 0 && io_set_nonblock(p->out, 1) == 0 &&
	       io_set_nonblock(p->err, 1) == 0);
	return FIRST_PID + nsessions++;
}

/* In place of libc's: nobody else may be hit. */
int kill(pid_t pid, int sig)
{
	pid_t n = (pid < 0 ? -pid : pid) - FIRST_PID;

	assert(n >= 0 && n < nsessions && sessions[n].alive);
	if (sig == SIGKILL)
		sessions[n].killed = true;
	return 0;
}

int renew_random(struct renew_kept *k, const uint8_t entropy[REQUEST_ENTROPY], struct err *err)
{
	(void)k;
	(void)entropy;
	return err_text(err, EPERM, "not here");
}

int renew_kernel(struct renew_kept *k, const struct request_renew *r, struct err *err)
{
	(void)k;
	(void)r;
	return err_text(err, EPERM, "not here");
}

int renew_boot_id(struct renew_kept *k, const char *run_dir, const struct request_renew *r,
		  struct err *err)
{
	(void)k;
	(void)run_dir;
	(void)r;
	return err_text(err, EPERM, "not here");
}

static void die(struct session *p, int wstatus)
{
	pid_t pid = FIRST_PID + (pid_t)(p - sessions);

	if (!p->alive)
		return;
	p->alive = false;
	close(p->ctl);
	close_fd(&p->in);
	close(p->out);
	close(p->err);
	list_for_each_safe (c, &a.reaper.children, struct reap_child, link) {
		if (c->pid != pid)
			continue;
		list_del(&c->link);
		c->fn(c, wstatus);
		return;
	}
	assert(p->relay && p->killed); /* nobody waits for that */
}

static void run(int times)
{
	for (int i = 0; i < times; i++) {
		assert(loop_run_once(&a.loop, 0) == 0);
		list_for_each (s, &a.server.streams, struct stream, link)
			assert(s->out.out.cap <= SEND_BUFFER_MAX);
		for (int n = 0; n < nsessions; n++)
			if (sessions[n].alive && sessions[n].killed)
				die(&sessions[n], SIGKILL);
	}
}

static void host_send(struct host *h, uint8_t type, const void *p, size_t len)
{
	uint8_t frame[FRAME_HEADER_SIZE + 1024];

	if (h->fd < 0 || len > 1024)
		return;
	frame_pack_header(frame, type, (uint32_t)len);
	if (len)
		memcpy(frame + FRAME_HEADER_SIZE, p, len);
	/* A full socket swallows part of it: then the stream breaks, which is a case as well. */
	if (send(h->fd, frame, FRAME_HEADER_SIZE + len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return;
}

static void host_check(struct host *h, uint8_t type, size_t len)
{
	if (type == FRAME_EVENT_PART)
		h->pieces = len ? h->pieces + len : 0;
	else if (type == FRAME_EVENT)
		h->pieces = 0;
	assert(h->pieces <= (size_t)8 << 20);
	if (type == FRAME_EXIT || type == FRAME_ERROR)
		h->pieces = 0;
}

static void host_read(struct host *h)
{
	ssize_t n;

	while (h->fd >= 0 &&
	       (n = recv(h->fd, h->in + h->len, sizeof(h->in) - h->len, MSG_DONTWAIT)) > 0) {
		size_t at = 0;

		h->len += (size_t)n;
		while (h->len - at >= FRAME_HEADER_SIZE) {
			uint32_t len;
			uint8_t type;

			assert(frame_unpack_header(h->in + at, &type, &len) == 0);
			if (h->len - at < FRAME_HEADER_SIZE + len)
				break;
			host_check(h, type, len);
			at += FRAME_HEADER_SIZE + len;
		}
		memmove(h->in, h->in + at, h->len - at);
		h->len -= at;
	}
}

static void host_close(struct host *h)
{
	if (h->fd >= 0)
		close(h->fd);
	h->fd = -1;
	h->len = h->pieces = 0;
}

static void host_open(struct host *h)
{
	int pair[2];

	host_close(h);
	assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
	assert(stream_new(&a.server, pair[0]));
	h->fd = pair[1];
}

/* One line of the host's part. */
static void host_act(struct host *h, uint8_t what, const uint8_t *p, size_t len)
{
	static const char *const requests[] = {
		"{\"language\":\"python\"}",
		"{\"language\":\"python\",\"timeout_ms\":5,\"output_limit\":100}",
		"{\"language\":\"python\",\"stdin\":true,\"env\":{\"A\":\"b\"},\"cwd\":\"/\"}",
		"{\"language\":\"python\",\"context\":\"a\",\"output_limit\":1000000}",
		"{\"language\":\"python\",\"context\":\"a\",\"cwd\":\"/no/such\"}",
		"{\"language\":\"bash\",\"keep\":\"a\"}",
		"{\"language\":\"bash\",\"keep\":\"b\",\"stdin\":true,\"timeout_ms\":5}",
		"{\"language\":\"bash\",\"keep\":\"b\",\"pty\":{\"cols\":80,\"rows\":5}}",
	};
	static const char *const commands[] = {
		"{\"op\":\"attach\",\"id\":\"a\"}",
		"{\"op\":\"attach\",\"id\":\"b\",\"stdin\":true}",
		"{\"op\":\"attach\",\"id\":\"a\",\"stdout\":-1,\"stderr\":5}",
		"{\"op\":\"signal\",\"id\":\"a\",\"signal\":9}",
		"{\"op\":\"signal\",\"id\":\"b\",\"signal\":2,\"group\":false}",
		"{\"op\":\"forget\",\"id\":\"a\"}",
		"{\"op\":\"forget\",\"id\":\"b\"}",
		"{\"op\":\"list\"}",
	};
	static const char *const contexts[] = {
		"{\"op\":\"create\",\"id\":\"a\"}", "{\"op\":\"delete\",\"id\":\"a\"}",
		"{\"op\":\"restart\",\"id\":\"a\"}", "{\"op\":\"restart\",\"id\":\"default\"}",
		"{\"op\":\"list\"}"};

	if (h->fd < 0)
		host_open(h);
	switch (what % 11) {
	case 0:
		host_send(h, FRAME_EXEC, requests[len % ARRAY_SIZE(requests)],
			  strlen(requests[len % ARRAY_SIZE(requests)]));
		host_send(h, FRAME_DATA_IN, p, len);
		host_send(h, FRAME_END_IN, NULL, 0);
		break;
	case 1:
		host_send(h, FRAME_CANCEL, NULL, 0);
		break;
	case 2:
		host_send(h, FRAME_INTERRUPT, NULL, 0);
		break;
	case 3:
		host_send(h, FRAME_STDIN, p, len);
		break;
	case 4:
		host_send(h, FRAME_STDIN_END, NULL, 0);
		break;
	case 5:
		host_send(h, FRAME_WARM, "{}", 2);
		break;
	case 6:
		host_send(h, FRAME_CONTEXT, contexts[len % ARRAY_SIZE(contexts)],
			  strlen(contexts[len % ARRAY_SIZE(contexts)]));
		break;
	case 7:
		host_read(h);
		break;
	case 8:
		host_send(h, FRAME_COMMAND, commands[len % ARRAY_SIZE(commands)],
			  strlen(commands[len % ARRAY_SIZE(commands)]));
		break;
	case 9:
		host_send(h, FRAME_RESIZE, "{\"cols\":9,\"rows\":8}", 19);
		break;
	default:
		host_close(h);
		break;
	}
}

/* Egress is switched on or off. */
static void host_egress(struct host *h, size_t len)
{
	static const char on[] = "{\"on\":true}", off[] = "{\"on\":false}";
	static const char ca[] = "{\"on\":true,\"ca\":\"-----BEGIN CERTIFICATE-----\\nx"
				 "\\n-----END CERTIFICATE-----\"}";
	static const char *const texts[] = {on, off, ca};
	const char *text = texts[len % ARRAY_SIZE(texts)];

	if (h->fd < 0)
		host_open(h);
	host_send(h, FRAME_EGRESS, text, strlen(text));
}

static void put(int fd, const void *p, size_t len)
{
	if (write(fd, p, len) < 0)
		return;
}

static void session_frame(struct session *p, uint8_t type, const void *payload, size_t len)
{
	uint8_t head[FRAME_HEADER_SIZE];

	frame_pack_header(head, type, (uint32_t)len);
	put(p->ctl, head, sizeof(head));
	put(p->ctl, payload, len);
}

/* One line of a session's part. */
static void session_act(struct session *p, uint8_t what, const uint8_t *data, size_t len)
{
	static const uint8_t zeros[FRAME_PAYLOAD_MAX];
	static const char exit_ok[] = "{\"exit_code\":130}";
	uint8_t sink[4096];

	if (!p->alive)
		return;
	switch (what % 12) {
	case 0:
		session_frame(p, FRAME_READY, "{}", 2);
		break;
	case 1:
		session_frame(p, FRAME_EXIT, exit_ok, sizeof(exit_ok) - 1);
		break;
	case 2:
		session_frame(p, FRAME_EVENT, data, len);
		break;
	case 3:
		session_frame(p, FRAME_EVENT_PART, zeros, len * 256);
		break;
	case 4:
		session_frame(p, FRAME_PONG, NULL, 0);
		break;
	case 5:
		session_frame(p, FRAME_OK, "{}", 2);
		break;
	case 6:
		put(p->out, zeros, len * 256);
		break;
	case 7:
		put(p->err, data, len);
		break;
	case 8:
		put(p->ctl, data, len);
		break;
	case 9:
		while (recv(p->ctl, sink, sizeof(sink), MSG_DONTWAIT) > 0)
			;
		if (p->in >= 0 && read(p->in, sink, sizeof(sink)) < 0)
			break;
		break;
	case 10:
		session_frame(p, data[0], data, len);
		break;
	default:
		die(p, len % 3 ? (int)(len << 8) & 0xff00 : SIGSEGV);
		break;
	}
}

/* The next alarm rings: time has passed. */
static void pass_time(void)
{
	struct alarm *first = NULL;

	list_for_each (t, &a.alarms, struct alarm, link)
		if (!first || t->timer.at_ns < first->timer.at_ns)
			first = t;
	if (!first)
		return;
	loop_timer_cancel(&first->timer);
	first->timer.fn(&first->timer);
}

static void set_up(void)
{
	/* Any ports that are free. */
	static const struct egress_config ports = {0, 0, "host"};
	struct err err;

	a = (struct agent){.user = {.name = "user", .home = "/"}, .log_dir = log_dir};
	nsessions = 0;
	no_more = false;
	assert(loop_init(&a.loop) == 0);
	list_init(&a.alarms);
	list_init(&a.logs.list);
	list_init(&a.kept.list);
	list_init(&a.leftovers);
	list_init(&a.reaper.children);
	list_init(&a.server.streams);
	a.server.agent = &a;
	a.server.fd = -1;
	assert(cgroups_init(&a.cgroups, &a.loop, NULL, &err) == 0);
	assert(mkdir(egress_dir, 0755) == 0 || errno == EEXIST);
	egress_init(&a.egress, &a, &ports, "/nonexistent", egress_dir);
	contexts_init(&a, "script");
	freezer_init(&a.freezer, &a);
	renewal_init(&a.renewal, &a, "/nonexistent", "/nonexistent");
	for (int i = 0; i < HOSTS; i++)
		hosts[i].fd = -1;
	repl_start(&a.repl);
}

static void tear_down(void)
{
	struct request_egress off = {0};
	struct err err;

	assert(egress_set(&a.egress, &off, &err) == 0 && a.egress.nenv == 0 && !a.egress.ca);
	no_more = true;
	for (int i = 0; i < HOSTS; i++) {
		host_read(&hosts[i]);
		host_close(&hosts[i]);
	}
	for (int round = 0; round < 64; round++) {
		run(4);
		for (int n = 0; n < nsessions; n++)
			if (round > 4)
				die(&sessions[n], 0);
		pass_time();
	}
	assert(list_empty(&a.server.streams) && list_empty(&a.reaper.children));
	assert(a.egress.mode == EGRESS_OFF && a.egress.listener[0] < 0 && !a.egress.child.pid);
	/* All have ended, and nobody is attached: nothing is left but the names. */
	list_for_each_safe (k, &a.kept.list, struct kept, link) {
		assert(kept_ended(k) && k->refs == 1 && list_empty(&k->attachments));
		assert(k->log[0].end - k->log[0].start <= KEEP_LOG_MAX);
		kept_forget(k);
	}
	assert(a.kept.count == 0);
	/* Logs that calls have left; the link is what they begin with. */
	while (!list_empty(&a.logs.list)) {
		struct list *log = a.logs.list.next;

		list_del(log);
		free(log);
	}
	list_for_each (r, &a.contexts, struct repl, link)
		assert(!r->cell && list_empty(&r->waiting) && r->state == REPL_ABSENT &&
		       !r->output);
	assert(list_empty(&a.leftovers) && list_empty(&a.alarms));
	/* Contexts live as long as the agent. */
	while (a.contexts.prev != &a.repl.link) {
		struct repl *r = list_entry(a.contexts.prev, struct repl, link);

		list_del(&r->link);
		repl_end(r);
	}
	loop_run_once(&a.loop, 0);
	loop_free(&a.loop);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	signal(SIGPIPE, SIG_IGN);
	log_init(LOG_TEXT, (enum log_level)(LOG_ERROR + 1));
	set_up();
	while (size >= 3) {
		uint8_t what = data[0], who = data[1];
		size_t len = data[2];

		data += 3;
		size -= 3;
		if (len > size)
			len = size;
		if (len == 0 && size == 0)
			break;
		if (what < 100)
			session_act(&sessions[nsessions - 1 - (nsessions > 1 && who % 2)], what,
				    data, len);
		else if (what < 220)
			host_act(&hosts[who % HOSTS], what, data, len);
		else if (what < 230)
			pass_time();
		else if (what >= 240)
			host_egress(&hosts[who % HOSTS], len);
		run(who % 4 + 1);
		data += len;
		size -= len;
	}
	tear_down();
	return 0;
}
