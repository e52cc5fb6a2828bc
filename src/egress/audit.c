/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records to the daemon. A guest must not see a verdict that was not told:
 * when the socket is full this waits for the daemon, and when it is gone, or
 * does not read for AUDIT_WAIT_MS, the process ends, and all connections with
 * it. A record holds what was decided; never a path, a header or a body.
 */
#define _GNU_SOURCE
#include "egress/egress_impl.h"

#include "lib/fdpass.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "lib/log.h"
#include "proto/egress.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#define AUDIT_WAIT_MS 10000

void audit_address(const struct sockaddr *sa, char *out, size_t len)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)sa;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)sa;

	if (sa->sa_family == AF_INET)
		inet_ntop(AF_INET, &v4->sin_addr, out, (socklen_t)len);
	else
		inet_ntop(AF_INET6, &v6->sin6_addr, out, (socklen_t)len);
}

void audit_send(struct egress *e, json_t *message)
{
	_cleanup_free char *text = NULL;
	int rc = -ENOMEM;

	if (message)
		text = json_text_with(message, JSON_ENSURE_ASCII);
	json_decref(message);
	if (text) {
		size_t len = strlen(text);

		rc = len > EGRESS_MSG_MAX ? -EMSGSIZE : fdpass_send(e->ctl, text, len, NULL, 0);
		if (rc == -EAGAIN) {
			struct pollfd p = {.fd = e->ctl, .events = POLLOUT};

			/* A signal ends the wait early; the second try tells. */
			if (poll(&p, 1, AUDIT_WAIT_MS) >= 0)
				rc = fdpass_send(e->ctl, text, len, NULL, 0);
		}
		explicit_bzero(text, len); /* a policy's reply has a key */
	}
	if (rc == 0)
		return;
	if (rc == -EPIPE || rc == -ECONNRESET)
		_exit(0); /* the daemon is done with us */
	log_error("a record cannot be told to the daemon, which ends this proxy: %s",
		  strerror(-rc));
	_exit(1);
}

const char *audit_stream_exec(const struct egress *e, uint64_t stream)
{
	list_for_each (s, &e->streams, struct egress_stream, link)
		if (s->id == stream)
			return s->exec;
	return NULL;
}

static json_t *audit_record(struct egress *e, const char *type, const struct question *q,
			    const char *rule, const struct sockaddr *sa)
{
	char time_text[IO_TIME_TEXT], host[EGRESS_HOST_MAX + 1], address[INET6_ADDRSTRLEN] = "";
	char method[64] = ""; /* a guest's word: JSON has to be able to hold it */

	io_time_text((int64_t)(io_realtime_ns() / 1000000), time_text);
	if (q->q.method)
		text_printable(method, sizeof(method), q->q.method, strlen(q->q.method));
	if (sa)
		audit_address(sa, address, sizeof(address));
	if (q->host[0])
		snprintf(host, sizeof(host), "%s", q->host);
	else
		text_printable(host, sizeof(host), q->q.host, q->q.host_len);
	return json_pack("{s:s, s:s, s:I, s:I, s:s?, s:s, s:s, s:i, s:s?, s:s?, s:s?}", "type",
			 type, "time", time_text, "id", (json_int_t)q->id, "stream",
			 (json_int_t)q->q.stream, "exec",
			 q->exec ? q->exec : audit_stream_exec(e, q->q.stream), "proto",
			 egress_proto_text(q->q.proto), "host", host, "port", (int)q->q.port,
			 "method", q->q.method ? method : NULL, "address", sa ? address : NULL,
			 "rule", rule && rule[0] ? rule : NULL);
}

/* Adds to a record; a failure of memory leaves NULL, which audit_send() does not survive. */
static json_t *audit_add(json_t *record, json_t *more)
{
	if (record && json_object_update_new(record, more) == 0)
		return record;
	json_decref(record);
	return NULL;
}

void audit_decision(struct egress *e, const struct question *q, const char *rule,
		    const struct sockaddr *sa, enum egress_reason why, const char *detail,
		    const char *hint)
{
	json_t *r = audit_record(e, "decision", q, rule, sa);
	char text[512], more[512];

	text_printable(text, sizeof(text), detail, strlen(detail));
	text_printable(more, sizeof(more), hint, strlen(hint));
	audit_send(e, audit_add(r, json_pack("{s:s, s:s?, s:s, s:s*}", "verdict",
					     why == EGRESS_R_NONE ? "allow" : "deny", "reason",
					     why == EGRESS_R_NONE ? NULL : egress_reason_text(why),
					     "detail", text, "hint", more[0] ? more : NULL)));
}

void audit_used(struct egress *e)
{
	json_int_t n = e->bytes < INT64_MAX ? (json_int_t)e->bytes : INT64_MAX;

	e->bytes_told = e->bytes;
	audit_send(e, json_pack("{s:s, s:I}", "type", "used", "bytes", n));
}

void audit_end(struct egress *e, const struct egress_grant *g, enum egress_reason why)
{
	const struct sockaddr *sa = (const struct sockaddr *)(const void *)&g->addr;
	json_t *r = audit_record(e, "end", &g->question, g->rule, sa);
	json_int_t ms = (json_int_t)((io_now_ns() - g->began_ns) / 1000000u);
	bool plain = why == EGRESS_R_NONE;

	audit_send(e, audit_add(r, json_pack("{s:s, s:n, s:s, s:I, s:I, s:I, s:s}", "verdict",
					     "allow", "reason", "detail",
					     plain ? "it ended" : "it was ended", "bytes_up",
					     (json_int_t)g->up, "bytes_down", (json_int_t)g->down,
					     "duration_ms", ms, "why", egress_reason_text(why))));
}
