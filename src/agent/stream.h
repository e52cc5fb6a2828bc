/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One conversation with the host: frames in, frames out, one request at a
 * time (api/agent-protocol.md). The stream checks the order of frames; the
 * request that runs on it (the job) sees only what is meant for it.
 *
 * A job is attached with stream_set_job() and ends with one of the final
 * calls: stream_final(), stream_error(), stream_fail(); after that the stream
 * has forgotten it. When the peer goes away first, ops->gone is called
 * instead and the job must not use the stream any more.
 *
 * Memory: the send buffer is bounded. Producers ask stream_room() and pause at
 * 0; ops->room is called when there is room again. Frames put on a broken
 * stream are dropped.
 *
 * Thread: the loop's. fork: descriptors are close-on-exec.
 */
#pragma once

#include "lib/err.h"
#include "lib/list.h"
#include "lib/loop.h"
#include "proto/frame.h"

#include <jansson.h>
#include <stdbool.h>

struct agent;
struct server;
struct stream;

struct stream_ops {
	/* One DATA frame and END of the request's body. NULL: the request has no body. */
	void (*data)(struct stream *s, void *job, const uint8_t *p, size_t len);
	void (*end)(struct stream *s, void *job);
	/* STDIN and STDIN_END: a negative errno when they break the rules. NULL: they do. */
	int (*input)(struct stream *s, void *job, const uint8_t *p, size_t len);
	int (*input_end)(struct stream *s, void *job);
	/* RESIZE: a negative errno when it breaks the rules. NULL: it does. */
	int (*resize)(struct stream *s, void *job, const uint8_t *p, size_t len);
	/* CANCEL. NULL: ignored. */
	void (*cancel)(struct stream *s, void *job);
	/* INTERRUPT. NULL: ignored. */
	void (*interrupt)(struct stream *s, void *job);
	/* The send buffer has room again. NULL: the job does not produce. */
	void (*room)(struct stream *s, void *job);
	/* The peer is gone: end what runs, release everything. */
	void (*gone)(void *job);
	/* This machine is a copy and the peer talks to the original: what runs goes on without a
	   stream. NULL: as gone. */
	void (*detach)(void *job);
};

struct stream {
	struct list link; /* in the server's list; first, see loop_defer_free() */
	struct agent *agent;
	struct server *server;
	int fd;
	struct loop_src src;
	struct loop_timer linger;
	struct frame_reader in;
	struct frame_writer out;
	const struct stream_ops *ops; /* of the job, NULL when none runs */
	void *job;
	uint32_t events; /* that epoll waits for now */
	size_t left;     /* bytes that were taken and are still in the socket: stream_fill() */
	bool body;       /* DATA* END of a request is still to come */
	bool want_room;  /* call ops->room even if everything is sent */
	bool in_paused;  /* too many answers wait to be read: do not take more frames */
	bool resting;    /* see stream_rest() */
	bool broken;     /* sending failed: what is put is dropped until the loop reports it */
	bool closing;    /* refused: send what is queued, then close */
	bool closed;
};

/* Takes fd over (non-blocking, connected). NULL when out of memory (fd is closed). */
struct stream *stream_new(struct server *srv, int fd);
/* Ends the job, closes, and frees after the current batch of the loop. */
void stream_close(struct stream *s);
/* The same, but the job is detached. */
void stream_abandon(struct stream *s);
/*
 * Rest: the peer is not listened to and nothing is sent, as if it neither wrote nor read; output
 * for it waits where it is. stream_wake() goes on with the next byte in both directions.
 */
void stream_rest(struct stream *s);
void stream_wake(struct stream *s);
/* ERROR bad_request (or what err says), then the connection is closed: the peer broke the rules. */
void stream_refuse(struct stream *s, const struct err *err);

void stream_set_job(struct stream *s, const struct stream_ops *ops, void *job);

/* Largest payload that output may add now; 0 = pause until ops->room. */
size_t stream_room(struct stream *s);
/* Asks for ops->room in the next turn of the loop: for producers that give others a chance. */
void stream_yield(struct stream *s);
/* Queues a frame. Output frames only after stream_room(); short control frames always fit. */
void stream_put(struct stream *s, uint8_t type, const void *payload, size_t len);
/* Queues a frame with a JSON object; takes the reference. NULL obj = out of memory: closes. */
void stream_put_json(struct stream *s, uint8_t type, json_t *obj);
/* Sends what the socket takes and waits for the rest. Callers of stream_put() call it when done. */
void stream_flush(struct stream *s);

/* JSON string of a text that may not be UTF-8 (names of files): foreign bytes become '?'. */
json_t *stream_text(const char *text);

/* The ends of a request; the job is detached first. stream_done(): the final frame is queued. */
void stream_done(struct stream *s);
void stream_final(struct stream *s, uint8_t type, json_t *obj);
void stream_fail(struct stream *s, const struct err *err);
void stream_error(struct stream *s, int num, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
