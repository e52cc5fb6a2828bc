/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two lists under one lock: jobs go from the loop to the thread, and back. The
 * thread has every signal blocked: signals are the loop's.
 */
#define _GNU_SOURCE
#include "daemon/group_worker.h"
#include "lib/io.h"
#include "lib/thread.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>

#define AGAIN_NS 10000000ull

/* The first job whose time has come; *next: when there is one otherwise, 0 = never. */
static struct group_job *worker_pick(struct group_worker *w, uint64_t *next)
{
	uint64_t now = io_now_ns();

	*next = 0;
	list_for_each (j, &w->todo, struct group_job, link) {
		if (j->again_ns <= now)
			return j;
		if (!*next || j->again_ns < *next)
			*next = j->again_ns;
	}
	return NULL;
}

static void worker_wait(struct group_worker *w, uint64_t until)
{
	struct timespec ts = {.tv_sec = (time_t)(until / 1000000000),
			      .tv_nsec = (long)(until % 1000000000)};

	if (until)
		pthread_cond_timedwait(&w->wake, &w->lock, &ts);
	else
		pthread_cond_wait(&w->wake, &w->lock);
}

static void worker_tell(struct group_worker *w)
{
	uint64_t one = 1;

	/* A full counter tells as well. */
	(void)!io_write_some(w->src.fd, &one, sizeof(one));
}

static void *worker_run(void *arg)
{
	struct group_worker *w = arg;

	pthread_mutex_lock(&w->lock);
	for (;;) {
		uint64_t next;
		struct group_job *j = worker_pick(w, &next);

		if (list_empty(&w->todo) && w->stop)
			break;
		if (!j) {
			worker_wait(w, next);
			continue;
		}
		list_del(&j->link);
		pthread_mutex_unlock(&w->lock);
		j->rc = j->run(j);
		pthread_mutex_lock(&w->lock);
		if (j->rc == GROUP_JOB_AGAIN) {
			j->again_ns = io_now_ns() + AGAIN_NS;
			list_add_tail(&w->todo, &j->link);
			continue;
		}
		list_add_tail(&w->done, &j->link);
		worker_tell(w);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

static void worker_finish(struct group_worker *w)
{
	for (;;) {
		struct group_job *j = NULL;

		pthread_mutex_lock(&w->lock);
		if (!list_empty(&w->done)) {
			j = list_entry(w->done.next, struct group_job, link);
			list_del(&j->link);
		}
		pthread_mutex_unlock(&w->lock);
		if (!j)
			return;
		j->done(j, j->rc);
	}
}

static void worker_on_event(struct loop_src *src, uint32_t events)
{
	uint64_t n;

	(void)events;
	(void)!io_read_some(src->fd, &n, sizeof(n));
	worker_finish(src->arg);
}

int group_worker_start(struct group_worker *w, struct loop *loop, struct err *err)
{
	_cleanup_fd int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_condattr_t attr;
	int rc;

	*w = (struct group_worker){0};
	list_init(&w->todo);
	list_init(&w->done);
	pthread_mutex_init(&w->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w->wake, &attr);
	pthread_condattr_destroy(&attr);
	w->src = (struct loop_src){.fd = -1, .fn = worker_on_event, .arg = w};
	rc = fd < 0 ? -errno : loop_add(loop, &w->src, fd, EPOLLIN);
	if (rc < 0)
		return err_set(err, -rc, "cannot watch the thread for control groups");
	rc = thread_start(&w->thread, worker_run, w);
	if (rc) {
		loop_del(&w->src);
		return err_set(err, rc, "cannot start a thread for control groups");
	}
	w->running = true;
	take_fd(&fd);
	return 0;
}

void group_worker_stop(struct group_worker *w)
{
	int fd = w->src.fd;

	if (!w->running)
		return;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
	pthread_join(w->thread, NULL);
	w->running = false;
	worker_finish(w);
	loop_del(&w->src);
	close_fd(&fd);
	pthread_cond_destroy(&w->wake);
	pthread_mutex_destroy(&w->lock);
}

void group_worker_add(struct group_worker *w, struct group_job *j)
{
	j->again_ns = 0;
	pthread_mutex_lock(&w->lock);
	list_add_tail(&w->todo, &j->link);
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
}
