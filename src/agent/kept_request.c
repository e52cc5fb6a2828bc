/* SPDX-License-Identifier: Apache-2.0 */
/*
 * COMMAND: what the host asks about kept commands.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/attachment.h"
#include "agent/command.h"
#include "agent/stream.h"
#include "lib/io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* All entries fit one frame: one that is larger is told without its directory. */
#define KEPT_ENTRY_MAX ((FRAME_PAYLOAD_MAX - 64) / KEPT_MAX - 2)

static json_int_t kept_age_ms(uint64_t since_ns)
{
	return (json_int_t)((io_now_ns() - since_ns) / 1000000);
}

static json_t *kept_log_object(const struct keep_log *l)
{
	return json_pack("{s:I, s:I}", "start", (json_int_t)l->start, "end", (json_int_t)l->end);
}

/* What an entry of one that has ended has in addition. */
static void kept_put_end(const struct kept *k, json_t *obj)
{
	static const char *const names[] = {"exit_code", "reason", "signal"};
	json_t *end = kept_exit_object(k, 0);

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		json_t *v = json_object_get(end, names[i]);

		if (v)
			json_object_set(obj, names[i], v);
	}
	json_decref(end);
	json_object_set_new(obj, "ended_ms", json_integer(kept_age_ms(k->end.end_ns)));
}

static json_t *kept_entry(const struct kept *k)
{
	uint64_t dropped = k->log[0].dropped + k->log[1].dropped;
	json_t *obj =
		json_pack("{s:s, s:i, s:s, s:I, s:b, s:o, s:o, s:b, s:I}", "id", k->id, "pid",
			  (int)k->pid, "state", kept_ended(k) ? "ended" : "running", "started_ms",
			  kept_age_ms(k->end.start_ns), "pty", k->terminal, "stdout",
			  kept_log_object(&k->log[0]), "stderr", kept_log_object(&k->log[1]),
			  "truncated", dropped > 0, "bytes_dropped", (json_int_t)dropped);

	if (!obj)
		return NULL;
	json_object_update(obj, k->what);
	if (kept_ended(k))
		kept_put_end(k, obj);
	if (k->cwd)
		json_object_set_new(obj, "cwd", stream_text(k->cwd));
	if (json_dumpb(obj, NULL, 0, JSON_COMPACT) > KEPT_ENTRY_MAX)
		json_object_del(obj, "cwd");
	return obj;
}

static void kept_list(struct stream *s)
{
	json_t *list = json_array();

	list_for_each (k, &s->agent->kept.list, struct kept, link)
		json_array_append_new(list, kept_entry(k));
	stream_final(s, FRAME_OK, json_pack("{s:o}", "commands", list));
}

static void kept_attach(struct stream *s, struct kept *k, const struct request_command *r)
{
	struct err err;

	if (attachment_begin(s, k, r->offset, r->input, &err) < 0)
		stream_fail(s, &err);
}

static void kept_signal(struct stream *s, struct kept *k, const struct request_command *r)
{
	int rc = kept_ended(k) ? -ESRCH : command_signal(k->command, (int)r->signal, r->group);

	if (rc == -ESRCH)
		stream_final(s, FRAME_OK, json_pack("{s:b}", "ended", 1));
	else if (rc < 0)
		stream_error(s, -rc, "cannot send the signal: %s", strerror(-rc));
	else
		stream_final(s, FRAME_OK, json_object());
}

static void forget_on_gone(void *job)
{
	struct kept *k = job;

	k->forgetter = NULL;
}

static const struct stream_ops forget_ops = {
	.gone = forget_on_gone,
};

static void kept_forget_for(struct stream *s, struct kept *k)
{
	/* It may end at once. */
	kept_ref(k);
	if (!kept_ended(k)) {
		k->forgetter = s;
		stream_set_job(s, &forget_ops, k);
		kept_forget(k);
	} else {
		kept_forget(k);
		stream_final(s, FRAME_OK, json_object());
	}
	kept_unref(k);
}

void kept_request(struct stream *s, const struct request_command *r)
{
	struct kept *k = r->id ? kept_find(s->agent, r->id) : NULL;

	if (r->op != COMMAND_LIST && !k) {
		stream_error(s, ENOENT, "no such command");
		return;
	}
	switch (r->op) {
	case COMMAND_LIST:
		kept_list(s);
		break;
	case COMMAND_ATTACH:
		kept_attach(s, k, r);
		break;
	case COMMAND_SIGNAL:
		kept_signal(s, k, r);
		break;
	case COMMAND_FORGET:
		kept_forget_for(s, k);
		break;
	}
}
