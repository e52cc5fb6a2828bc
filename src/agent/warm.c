/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The WARM request. It outlives its stream in the REPL, which is busy until it
 * has answered; the answer is then dropped. Whoever sends it is about to make
 * copies of the machine, which are to have as little left to do as possible.
 */
#define _GNU_SOURCE
#include "agent/warm.h"
#include "agent/agent.h"
#include "agent/cell.h"
#include "agent/stream.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WARM_HEAP (64 << 10) /* bytes */
/* What is mapped by itself, and new each time: larger than the buffers of a stream. */
#define WARM_MAPPED (1 << 20)

static void warm_on_gone(void *job)
{
	struct repl *r = job;

	r->warm = NULL;
}

static const struct stream_ops warm_ops = {
	.gone = warm_on_gone,
};

void repl_warm(struct repl *r, struct stream *s)
{
	if (r->warm || r->state == REPL_BUSY || r->state == REPL_WARMING) {
		stream_error(s, EBUSY, "the Python session is running other code");
		return;
	}
	r->warm = s;
	stream_set_job(s, &warm_ops, r);
	repl_start(r);
	if (r->state == REPL_READY)
		repl_begin_next(r);
}

bool warm_begin(struct repl *r)
{
	if (!r->warm || !repl_lives(r))
		return false;
	r->state = REPL_WARMING;
	repl_pay(r);
	if (frame_put(&r->ctl_out, FRAME_WARM, "{}", 2) < 0)
		repl_kill(r, "its control channel has no room");
	return true;
}

/* What the REPL says is not passed on as it is: it may be anything. */
static void warm_tell_error(struct stream *s, const struct frame *f)
{
	json_t *obj = json_loadb((const char *)f->payload, f->len, 0, NULL);
	const char *text = json_string_value(json_object_get(obj, "message"));

	stream_error(s, EIO, "the Python session could not be warmed up: %.300s",
		     text ? text : "it gave no reason");
	json_decref(obj);
}

/*
 * What waits to be written to the disk is written now. Linux does it when it is half a minute old:
 * each copy of the machine would, for itself, and take a quarter of a MiB for it.
 */
static void warm_sync_disk(const struct agent *a)
{
	_cleanup_fd int fd = -1;

	if (a->layers.upper < 0)
		return;
	fd = openat(a->layers.upper, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || syncfs(fd) < 0)
		log_error("the disk cannot be written: %s", strerror(errno));
}

/*
 * Room for what copies allocate: without it the first request of each would reach beyond what was
 * ever touched here, and have a page made and zeroed for it.
 */
static void warm_heap(void)
{
	char *room;

	/* The first stops glibc from adapting the second, which is 128 KiB at first. */
	mallopt(M_TRIM_THRESHOLD, 2 * WARM_MAPPED);
	mallopt(M_MMAP_THRESHOLD, WARM_MAPPED);
	room = malloc(WARM_HEAP);
	if (room)
		explicit_bzero(room, WARM_HEAP);
	free(room);
}

void warm_done(struct repl *r, const struct frame *f)
{
	struct stream *s = r->warm;

	r->warm = NULL;
	if (!s)
		return;
	if (f->type == FRAME_OK) {
		warm_sync_disk(r->agent);
		warm_heap();
		stream_final(s, FRAME_OK, json_object());
	} else {
		warm_tell_error(s, f);
	}
}

void warm_refuse(struct repl *r, const struct err *err)
{
	struct stream *s = r->warm;

	r->warm = NULL;
	if (s)
		stream_fail(s, err);
}
