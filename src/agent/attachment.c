/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attachments. Each has its own place in the logs; the logs are the only buffer, so a slow reader
 * costs nothing but what he misses when the oldest half of a log is cut away. Invariant: unless
 * there is no room in the stream, which then asks for more, all that is in the logs has been sent.
 */
#include "agent/attachment.h"
#include "agent/agent.h"
#include "agent/command.h"
#include "agent/stream.h"

#include <errno.h>
#include <stdlib.h>

/* Frames of each log in one turn of the loop: others want theirs, too. */
#define ATTACHMENT_TURN 4

struct attachment {
	struct list link; /* in its command's list */
	struct stream *stream;
	struct kept *kept;
	uint64_t at[2];  /* offsets of the next bytes */
	uint64_t missed; /* bytes that were gone before they could be sent */
	bool lost_place; /* some were, and that has to be told */
};

static void attachment_free(struct attachment *t)
{
	struct kept *k = t->kept;

	list_del(&t->link);
	if (k->writer == t) {
		k->writer = NULL;
		feed_set_stream(&k->feed, NULL);
	}
	free(t);
	kept_unref(k);
}

static void attachment_tell_place(struct attachment *t)
{
	t->lost_place = false;
	stream_put_json(t->stream, FRAME_EVENT,
			json_pack("{s:s, s:i, s:I, s:I}", "type", "position", "pid",
				  (int)t->kept->pid, "stdout", (json_int_t)t->at[0], "stderr",
				  (json_int_t)t->at[1]));
}

static void attachment_skip(struct attachment *t, int i, uint64_t to)
{
	t->missed += to - t->at[i];
	t->at[i] = to;
	t->lost_place = true;
}

/* Sends the next bytes of one log: false when there are none, or there is no room. */
static bool attachment_send(struct attachment *t, int i)
{
	const struct keep_log *l = &t->kept->log[i];
	uint8_t *buf = t->stream->agent->scratch;
	size_t max, n;

	if (t->at[i] < l->start)
		attachment_skip(t, i, l->start);
	max = t->at[i] < l->end ? stream_room(t->stream) : 0;
	if (max == 0)
		return false;
	n = keep_log_read(l, t->at[i], buf, max);
	if (n == 0) {
		attachment_skip(t, i, l->end);
		return true;
	}
	if (t->lost_place)
		attachment_tell_place(t);
	stream_put(t->stream, i == 0 ? FRAME_STDOUT : FRAME_STDERR, buf, n);
	t->at[i] += n;
	return true;
}

/* Whether all is sent that there is. */
static bool attachment_at_end(const struct attachment *t)
{
	for (int i = 0; i < 2; i++)
		if (t->at[i] < t->kept->log[i].end)
			return false;
	return true;
}

/* Sends what there is; t is gone afterwards when that was the last of it. */
static void attachment_pump(struct attachment *t)
{
	struct stream *s = t->stream;

	for (int turn = 0; turn < ATTACHMENT_TURN; turn++) {
		bool out = attachment_send(t, 0), err = attachment_send(t, 1);

		if (!out && !err)
			break;
	}
	if (!attachment_at_end(t)) {
		stream_yield(s);
	} else if (kept_ended(t->kept)) {
		stream_final(s, FRAME_EXIT, kept_exit_object(t->kept, t->missed));
		attachment_free(t);
	} else {
		stream_flush(s);
	}
}

void attachments_pump(struct kept *k)
{
	kept_ref(k);
	list_for_each_safe (t, &k->attachments, struct attachment, link)
		attachment_pump(t);
	kept_unref(k);
}

static void attachment_on_room(struct stream *s, void *job)
{
	struct attachment *t = job;

	(void)s;
	if (t->kept->writer == t)
		feed_on_room(&t->kept->feed);
	attachment_pump(t);
}

static int attachment_on_input(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct attachment *t = job;

	(void)s;
	return t->kept->writer == t ? feed_put(&t->kept->feed, p, len) : -EPROTO;
}

static int attachment_on_input_end(struct stream *s, void *job)
{
	struct attachment *t = job;

	(void)s;
	return t->kept->writer == t ? feed_end(&t->kept->feed) : -EPROTO;
}

static int attachment_on_resize(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct attachment *t = job;
	struct terminal_size size;
	struct err err;

	(void)s;
	if (!t->kept->terminal || request_parse_resize(p, len, &size, &err) < 0)
		return -EPROTO;
	if (!kept_ended(t->kept))
		command_resize(t->kept->command, &size);
	return 0;
}

static void attachment_on_cancel(struct stream *s, void *job)
{
	struct attachment *t = job;

	(void)s;
	if (!kept_ended(t->kept))
		command_cancel(t->kept->command);
}

static void attachment_on_interrupt(struct stream *s, void *job)
{
	struct attachment *t = job;

	(void)s;
	if (!kept_ended(t->kept))
		command_interrupt(t->kept->command);
}

static void attachment_on_gone(void *job)
{
	attachment_free(job);
}

static const struct stream_ops attachment_ops = {
	.input = attachment_on_input,
	.input_end = attachment_on_input_end,
	.resize = attachment_on_resize,
	.cancel = attachment_on_cancel,
	.interrupt = attachment_on_interrupt,
	.room = attachment_on_room,
	.gone = attachment_on_gone,
};

/* Whether a stream may write its input now. */
static int attachment_check_input(const struct kept *k, struct err *err)
{
	if (kept_ended(k))
		return err_text(err, ECHILD, "the command has ended");
	if (!k->feed.agent)
		return err_text(err, EINVAL, "the command was started without \"stdin\"");
	if (k->feed.ended)
		return err_text(err, ESHUTDOWN, "the input of the command has been closed");
	/* Those who write have a whole window each: what the one before has left goes first. */
	if (k->writer || feed_waits(&k->feed))
		return err_text(err, EBUSY, "the command gets its input from another stream");
	return 0;
}

int attachment_begin(struct stream *s, struct kept *k, const int64_t offset[2], bool input,
		     struct err *err)
{
	int rc = input ? attachment_check_input(k, err) : 0;
	struct attachment *t = rc == 0 ? calloc(1, sizeof(*t)) : NULL;

	if (!t)
		return rc < 0 ? rc : err_set(err, ENOMEM, "cannot attach");
	t->stream = s;
	t->kept = k;
	kept_ref(k);
	list_add_tail(&k->attachments, &t->link);
	for (int i = 0; i < 2; i++) {
		const struct keep_log *l = &k->log[i];

		t->at[i] = offset[i] < 0 ? l->end : (uint64_t)offset[i];
		if (t->at[i] > l->end)
			t->at[i] = l->end;
		if (t->at[i] < l->start)
			attachment_skip(t, i, l->start);
	}
	if (input) {
		k->writer = t;
		feed_set_stream(&k->feed, s);
	}
	stream_set_job(s, &attachment_ops, t);
	attachment_tell_place(t);
	attachment_pump(t);
	return 0;
}
