/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread that reads an image. It has every signal blocked: signals are the
 * loop's.
 */
#define _GNU_SOURCE
#include "daemon/image_loader.h"
#include "lib/io.h"
#include "lib/thread.h"

#include <errno.h>
#include <sys/eventfd.h>

static void *loader_run(void *arg)
{
	struct image_loader *l = arg;
	uint64_t one = 1;

	l->rc = image_load_root(&l->root, l->fd, l->path, &l->cancel, &l->err);
	/* Cannot fail: the counter of an eventfd has room for one. */
	if (io_write_some(l->src.fd, &one, sizeof(one)) < 0)
		return NULL;
	return NULL;
}

/* The thread has ended or ends at once; its results are the loop's from now on. */
static void loader_join(struct image_loader *l)
{
	int fd = l->src.fd;

	pthread_join(l->thread, NULL);
	l->running = false;
	loop_del(&l->src);
	close_fd(&fd);
}

static void loader_on_event(struct loop_src *src, uint32_t events)
{
	struct image_loader *l = src->arg;

	(void)events;
	loader_join(l);
	l->fn(l, l->arg);
}

int image_loader_start(struct image_loader *l, struct loop *loop, int image_fd, const char *path,
		       image_loader_fn *fn, void *arg, struct err *err)
{
	_cleanup_fd int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int rc;

	*l = (struct image_loader){
		.fd = image_fd, .path = path, .fn = fn, .arg = arg, .root.fd = -1};
	l->src = (struct loop_src){.fd = -1, .fn = loader_on_event, .arg = l};
	rc = fd < 0 ? -errno : loop_add(loop, &l->src, fd, EPOLLIN);
	if (rc < 0)
		return err_set(err, -rc, "cannot load the image %s", path);
	rc = thread_start(&l->thread, loader_run, l);
	if (rc) {
		loop_del(&l->src);
		return err_set(err, rc, "cannot start a thread to load the image %s", path);
	}
	l->running = true;
	take_fd(&fd);
	return 0;
}

void image_loader_stop(struct image_loader *l)
{
	if (!l->running)
		return;
	l->cancel = true;
	loader_join(l);
	close_fd(&l->root.fd);
}
