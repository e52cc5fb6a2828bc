/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a root image into memory beside the loop: a thread that does nothing
 * but that and tells the loop by an eventfd. Every VM of a template boots from
 * the one copy; a template that nobody uses costs nothing.
 *
 * Thread: the calls from the loop's; the thread touches `root`, `err` and `rc`
 * alone, and the loop looks at them only when it has been joined.
 * fork: descriptors are close-on-exec.
 */
#pragma once

#include "daemon/image.h"
#include "lib/loop.h"

#include <pthread.h>
#include <stdbool.h>

struct image_loader;

typedef void image_loader_fn(struct image_loader *l, void *arg);

struct image_loader {
	struct loop_src src;
	int fd;
	const char *path;
	pthread_t thread;
	bool running;
	_Atomic bool cancel;

	int rc; /* of the load, when fn is called */
	struct err err;
	struct root_image root;

	image_loader_fn *fn;
	void *arg;
};

/* As image_load_root(); fd and path must outlive it. fn is called once from the loop, unless the
 * loader is stopped before. */
int image_loader_start(struct image_loader *l, struct loop *loop, int image_fd, const char *path,
		       image_loader_fn *fn, void *arg, struct err *err);
/* Gives up a load that is under way. Waits for at most one step of reading. */
void image_loader_stop(struct image_loader *l);
