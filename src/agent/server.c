/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accepting streams. Only the host may connect: a process of the guest that
 * finds a way to its own vsock port is turned away. When descriptors run out
 * the listener rests for a second instead of spinning.
 */
#define _GNU_SOURCE
#include "agent/server.h"
#include "agent/agent.h"
#include "agent/stream.h"

#include <errno.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>

#define SERVER_STREAMS_MAX 64
#define SERVER_BACKLOG     64
#define SERVER_RETRY_NS    1000000000ull

int server_listen_vsock(unsigned port, struct err *err)
{
	struct sockaddr_vm addr = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = port,
	};
	_cleanup_fd int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return err_set(err, errno, "cannot make a vsock socket");
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return err_set(err, errno, "cannot bind vsock port %u", port);
	if (listen(fd, SERVER_BACKLOG) < 0)
		return err_set(err, errno, "cannot listen on vsock port %u", port);
	return take_fd(&fd);
}

static void server_rest(struct server *srv)
{
	loop_del(&srv->listener);
	loop_timer_set(&srv->agent->loop, &srv->retry, SERVER_RETRY_NS);
}

static void server_on_retry(struct loop_timer *t)
{
	struct server *srv = t->arg;

	if (loop_add(&srv->agent->loop, &srv->listener, srv->fd, EPOLLIN) < 0)
		loop_timer_set(&srv->agent->loop, t, SERVER_RETRY_NS);
}

/* Takes one connection: false when none waits. */
static bool server_accept(struct server *srv)
{
	struct sockaddr_vm peer = {0};
	socklen_t len = sizeof(peer);
	struct stream *s;
	struct err err;
	int fd;

	fd = accept4(srv->fd, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
			server_rest(srv);
		return false;
	}
	if (peer.svm_family == AF_VSOCK && peer.svm_cid != VMADDR_CID_HOST) {
		close(fd);
		return true;
	}
	s = stream_new(srv, fd);
	if (s && srv->nstreams - srv->nresting > SERVER_STREAMS_MAX) {
		err_text(&err, EMFILE, "more than %d streams are open", SERVER_STREAMS_MAX);
		stream_refuse(s, &err);
	}
	return true;
}

static void server_on_accept(struct loop_src *src, uint32_t events)
{
	(void)events;
	server_accept(src->arg);
}

int server_init(struct server *srv, struct agent *a, int fd, struct err *err)
{
	int rc;

	*srv = (struct server){.agent = a, .fd = fd};
	list_init(&srv->streams);
	srv->listener = (struct loop_src){.fd = -1, .fn = server_on_accept, .arg = srv};
	srv->retry = (struct loop_timer){.fn = server_on_retry, .arg = srv};
	rc = loop_add(&a->loop, &srv->listener, fd, EPOLLIN);
	return rc < 0 ? err_set(err, -rc, "cannot watch the listening socket") : 0;
}

void server_rest_streams(struct server *srv, const struct stream *except)
{
	/* Those that were opened before this moment rest as well, also if nobody looked at them. */
	for (int i = 0; i < SERVER_BACKLOG && server_accept(srv); i++)
		;
	list_for_each (s, &srv->streams, struct stream, link)
		if (s != except)
			stream_rest(s);
}

void server_wake_streams(struct server *srv)
{
	list_for_each_safe (s, &srv->streams, struct stream, link)
		stream_wake(s);
}

void server_abandon_streams(struct server *srv, const struct stream *except)
{
	list_for_each_safe (s, &srv->streams, struct stream, link)
		if (s != except)
			stream_abandon(s);
}

void server_stream_opened(struct server *srv, struct stream *s)
{
	list_add_tail(&srv->streams, &s->link);
	srv->nstreams++;
}

void server_stream_closed(struct server *srv, struct stream *s)
{
	list_del(&s->link);
	srv->nstreams--;
}
