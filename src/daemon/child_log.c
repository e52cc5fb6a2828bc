/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines out of a pipe, against a budget. While that is used up the pipe is not
 * looked at, so that it fills, and who floods it costs the loop nothing.
 */
#define _GNU_SOURCE
#include "daemon/child_log.h"
#include "daemon/limits.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static void line_over(struct child_log *c)
{
	struct log_field f = {.key = "text", .str = c->line};

	c->line[c->len] = '\0';
	c->lines--;
	if (c->len)
		log_event(LOG_WARN, "a VMM or proxy says", &f, 1);
	c->len = 0;
}

/* One line for each second that has gone by. */
static void child_log_refill(struct child_log *c)
{
	uint64_t now = io_now_ns(), seconds = (now - c->at_ns) / SECOND_NS;

	c->at_ns += seconds * SECOND_NS;
	c->lines += seconds < CHILD_LOG_BURST ? (unsigned int)seconds : CHILD_LOG_BURST;
	if (c->lines > CHILD_LOG_BURST)
		c->lines = CHILD_LOG_BURST;
}

static void child_log_read(struct child_log *c)
{
	while (c->lines) {
		char byte;

		if (c->at == c->n) {
			ssize_t n = read(c->src.fd, c->data, sizeof(c->data));

			if (n <= 0)
				return;
			c->at = 0;
			c->n = (size_t)n;
		}
		byte = c->data[c->at++];
		if (byte != '\n')
			/* A NUL would hide what follows it. */
			c->line[c->len++] = byte ? byte : '?';
		if (byte == '\n' || c->len == CHILD_LOG_LINE)
			line_over(c);
	}
}

static void on_pipe(struct loop_src *src, uint32_t events)
{
	struct child_log *c = src->arg;

	(void)events;
	child_log_refill(c);
	child_log_read(c);
	if (c->lines)
		return;
	loop_mod(&c->src, 0);
	loop_timer_set(c->loop, &c->more, SECOND_NS);
}

static void on_more(struct loop_timer *t)
{
	struct child_log *c = t->arg;

	loop_mod(&c->src, EPOLLIN);
	on_pipe(&c->src, 0);
}

int child_log_start(struct child_log *c, struct loop *l, struct err *err)
{
	int fd[2], rc;

	*c = (struct child_log){
		.loop = l, .write_fd = -1, .lines = CHILD_LOG_BURST, .at_ns = io_now_ns()};
	c->src = (struct loop_src){.fd = -1, .fn = on_pipe, .arg = c};
	c->more = (struct loop_timer){.fn = on_more, .arg = c};
	if (pipe2(fd, O_CLOEXEC | O_NONBLOCK) < 0)
		return err_set(err, errno, "cannot make the pipe for what VMMs say");
	rc = loop_add(l, &c->src, fd[0], EPOLLIN);
	if (rc < 0) {
		close(fd[0]);
		close(fd[1]);
		return err_set(err, -rc, "cannot watch the pipe for what VMMs say");
	}
	c->write_fd = fd[1];
	return 0;
}

void child_log_stop(struct child_log *c)
{
	int fd = c->src.fd;

	if (!c->loop || fd < 0)
		return;
	child_log_refill(c);
	child_log_read(c);
	if (c->lines)
		line_over(c);
	loop_timer_cancel(&c->more);
	loop_del(&c->src);
	close(fd);
	close_fd(&c->write_fd);
}
