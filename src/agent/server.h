/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The listener (vsock in the guest, a UNIX socket in tests) and the set of
 * open streams, which is bounded.
 * Thread: the loop's. fork: descriptors are close-on-exec.
 */
#pragma once

#include "lib/err.h"
#include "lib/loop.h"

struct agent;
struct stream;

struct server {
	struct agent *agent;
	struct loop_src listener;
	int fd;
	struct loop_timer retry; /* armed only while accepting is impossible */
	struct list streams;
	unsigned nstreams;
	unsigned nresting; /* of these; they do not count for the limit */
};

/* Listens on AF_VSOCK `port`: descriptor or -errno with err filled. */
__must_check int server_listen_vsock(unsigned port, struct err *err);
/* Serves the listening socket fd, which it takes over. */
__must_check int server_init(struct server *srv, struct agent *a, int fd, struct err *err);

/* All streams but `except` rest, wake up, or are abandoned (see stream.h). */
void server_rest_streams(struct server *srv, const struct stream *except);
void server_wake_streams(struct server *srv);
void server_abandon_streams(struct server *srv, const struct stream *except);

/* Book-keeping for stream.c. */
void server_stream_opened(struct server *srv, struct stream *s);
void server_stream_closed(struct server *srv, struct stream *s);
