/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Life of a kept command: listed with its start, ended when its process has (command.c), freed when
 * it is forgotten and nobody reads it any more.
 */
#define _GNU_SOURCE
#include "agent/kept.h"
#include "agent/agent.h"
#include "agent/attachment.h"
#include "agent/command.h"
#include "agent/stream.h"
#include "lib/io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void kept_ref(struct kept *k)
{
	k->refs++;
}

void kept_unref(struct kept *k)
{
	if (--k->refs > 0)
		return;
	/* Who starts it anew may have made logs of the same names: these have lost theirs. */
	for (int i = 0; i < 2; i++)
		keep_log_end(&k->log[i]);
	feed_close(&k->feed);
	json_decref(k->what);
	free(k->cwd);
	free(k->id);
	/* The feed's pipe may have been reported in this very batch of the loop. */
	loop_defer_free(&k->agent->loop, k);
}

struct kept *kept_find(struct agent *a, const char *id)
{
	list_for_each (k, &a->kept.list, struct kept, link)
		if (strcmp(k->id, id) == 0)
			return k;
	return NULL;
}

void kept_forget(struct kept *k)
{
	list_del(&k->link);
	k->agent->kept.count--;
	for (int i = 0; i < 2; i++)
		keep_log_delete(&k->log[i]);
	if (!kept_ended(k))
		command_cancel(k->command);
	kept_unref(k);
}

/* The oldest that has ended; NULL: all run. */
static struct kept *kept_oldest_ended(struct agent *a)
{
	list_for_each (k, &a->kept.list, struct kept, link)
		if (kept_ended(k))
			return k;
	return NULL;
}

json_t *kept_exit_object(const struct kept *k, uint64_t missed)
{
	uint64_t dropped = k->log[0].dropped + k->log[1].dropped + missed;
	json_t *obj = exec_exit_object(&k->end, NULL);

	if (!obj)
		return NULL;
	json_object_set_new(obj, "truncated", json_boolean(dropped > 0));
	json_object_set_new(obj, "bytes_dropped", json_integer((json_int_t)dropped));
	return obj;
}

static void kept_on_output(void *arg)
{
	attachments_pump(arg);
}

static void kept_on_end(void *arg, const struct exec_end *end)
{
	struct kept *k = arg;
	struct stream *forgetter = k->forgetter;

	k->end = *end;
	k->end.end_ns = io_now_ns();
	k->command = NULL;
	k->forgetter = NULL;
	feed_hang_up(&k->feed);
	attachments_pump(k);
	if (forgetter)
		stream_final(forgetter, FRAME_OK, json_object());
	kept_unref(k);
}

/* As many bytes of a text as are told, without a broken character at the end. */
static size_t kept_cut(const char *text, size_t len, size_t max)
{
	if (len <= max)
		return len;
	for (len = max; len > 0 && ((unsigned char)text[len] & 0xc0) == 0x80; len--)
		;
	return len;
}

static json_t *kept_text(const char *text, size_t len)
{
	char buf[KEPT_TEXT_MAX + 1];

	memcpy(buf, text, len);
	buf[len] = '\0';
	return stream_text(buf);
}

static json_t *kept_argv(char *const *argv)
{
	size_t left = KEPT_TEXT_MAX;
	json_t *list = json_array();

	/* Empty arguments count as well. */
	for (; list && *argv && left > 0; argv++) {
		size_t n = kept_cut(*argv, strlen(*argv), left - 1);

		json_array_append_new(list, kept_text(*argv, n));
		left -= n + 1;
	}
	return json_pack("{s:o}", "argv", list);
}

static json_t *kept_code(const struct request_exec *r, const struct code *code)
{
	/* One byte more shows whether a character ends with the last of them. */
	char text[KEPT_TEXT_MAX + 1];
	size_t n = code->size < sizeof(text) ? code->size : sizeof(text);

	if (io_pread_full(code->fd, text, n, 0) < 0)
		return NULL;
	return json_pack("{s:s, s:o}", "language",
			 r->language == LANGUAGE_BASH ? "bash" : "javascript", "code",
			 kept_text(text, kept_cut(text, n, KEPT_TEXT_MAX)));
}

static struct kept *kept_new(struct agent *a, const struct request_exec *r, const struct code *code)
{
	struct kept *k = calloc(1, sizeof(*k));

	if (!k)
		return NULL;
	k->agent = a;
	k->refs = 1;
	list_init(&k->link);
	list_init(&k->attachments);
	k->id = strdup(r->keep);
	k->what = r->language == LANGUAGE_ARGV ? kept_argv(r->argv) : kept_code(r, code);
	k->terminal = r->terminal.cols > 0;
	if (r->input || k->terminal)
		feed_init(&k->feed, a, NULL);
	if (k->id && k->what)
		return k;
	kept_unref(k);
	return NULL;
}

/* Whether there may be another one, of that name. */
static int kept_check(struct agent *a, const char *id, struct err *err)
{
	if (kept_find(a, id))
		return err_text(err, EEXIST, "there is a command of this id");
	if (a->kept.count >= KEPT_MAX && !kept_oldest_ended(a))
		return err_text(err, EMFILE, "%d kept commands run already", KEPT_MAX);
	return 0;
}

static int kept_launch(struct kept *k, const struct request_exec *r, const struct code *code,
		       struct err *err)
{
	struct command_owner owner = {
		.feed = k->feed.agent ? &k->feed : NULL,
		.logs = k->log,
		.logged = kept_on_output,
		.ended = kept_on_end,
		.arg = k,
	};
	struct agent *a = k->agent;

	k->end.start_ns = io_now_ns();
	k->command = command_start_kept(a, r, code, &owner, err);
	if (!k->command)
		return -err->num;
	k->pid = command_pid(k->command);
	k->cwd = command_take_cwd(k->command);
	if (a->kept.count >= KEPT_MAX)
		kept_forget(kept_oldest_ended(a));
	keep_log_begin(&k->log[0], a, k->id, "stdout");
	keep_log_begin(&k->log[1], a, k->id, "stderr");
	list_add_tail(&a->kept.list, &k->link);
	a->kept.count++;
	kept_ref(k); /* it runs */
	return 0;
}

void kept_start(struct stream *s, const struct request_exec *r, struct code *code)
{
	_cleanup_fd int code_fd = code->fd;
	const struct code own = {.fd = code_fd, .size = code->size};
	static const int64_t start[2] = {0, 0};
	struct kept *k = NULL;
	struct err err;
	int rc;

	rc = kept_check(s->agent, r->keep, &err);
	if (rc == 0) {
		k = kept_new(s->agent, r, &own);
		rc = k ? 0 : err_set(&err, ENOMEM, "cannot start a command");
	}
	if (rc == 0)
		rc = kept_launch(k, r, &own, &err);
	if (rc < 0) {
		if (k)
			kept_unref(k);
		stream_fail(s, &err);
		return;
	}
	/* Without memory for it, it runs all the same, and is listed. */
	if (attachment_begin(s, k, start, r->input, &err) < 0)
		stream_fail(s, &err);
}
