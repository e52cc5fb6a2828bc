/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests by hand. Every wait also looks at the descriptor that says stop.
 * The state of one exchange is on the stack of its call.
 */
#include "cli/http_call.h"

#include "cli/cli.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "lib/plain.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define SECOND      UINT64_C(1000000000)
#define REQUEST_MAX 65536u
#define GRACE_NS    (5 * SECOND)
#define PATIENCE_NS (2 * SECOND)

struct exchange {
	const struct http_call *c;
	int fd, stop_fd;
	uint64_t deadline_ns;
	bool given_up, said;
};

static int append_text(struct buf *out, const char *text)
{
	return buf_append(out, text, strlen(text));
}

int http_append_head(struct buf *out, const struct http_call *c, bool chunked)
{
	const char *const parts[] = {
		c->method,
		" ",
		c->path,
		" HTTP/1.1\r\nHost: ",
		c->to->authority,
		"\r\nUser-Agent: podflare/" PODFLARE_VERSION "\r\n",
		*c->to->key ? "Authorization: Bearer " : "",
		c->to->key,
		*c->to->key ? "\r\n" : "",
		c->headers ? c->headers : "Connection: close\r\n",
		chunked ? "Transfer-Encoding: chunked\r\n" : "",
	};
	int rc = 0;

	for (size_t i = 0; i < ARRAY_SIZE(parts) && rc == 0; i++)
		rc = append_text(out, parts[i]);
	return rc;
}

static int build(struct buf *out, const struct http_call *c)
{
	_cleanup_free char *text = json_text(c->body);
	char length[80] = "\r\n";
	int rc = http_append_head(out, c, false);

	if (c->body && !text)
		return -ENOMEM;
	if (text)
		snprintf(length, sizeof(length),
			 "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
			 strlen(text));
	if (rc == 0)
		rc = append_text(out, length);
	return rc == 0 && text ? append_text(out, text) : rc;
}

/* Waits for the connection: 0, -ETIMEDOUT, or -ECANCELED after the grace. */
static int wait_for(struct exchange *x, short events)
{
	for (;;) {
		uint64_t now = io_now_ns(), until = x->deadline_ns;
		bool patient = x->c->waiting && !x->said;
		int rc;

		if (patient && (!until || until > now + PATIENCE_NS))
			until = now + PATIENCE_NS;
		rc = endpoint_wait(x->fd, events, x->stop_fd, until);
		if (rc > 0)
			return 0;
		if (rc == -ECANCELED) {
			x->given_up = true;
			x->stop_fd = -1;
			x->deadline_ns = io_now_ns() + GRACE_NS;
			shutdown(x->fd, SHUT_WR);
			continue;
		}
		if (rc < 0)
			return rc;
		if (x->deadline_ns && io_now_ns() >= x->deadline_ns)
			return x->given_up ? -ECANCELED : -ETIMEDOUT;
		if (patient && !x->given_up)
			cli_say("%s", x->c->waiting);
		x->said = true;
	}
}

static int send_all(struct exchange *x, struct buf *out)
{
	while (buf_len(out)) {
		int rc = buf_flush(out, x->fd);

		if (rc == 1)
			rc = wait_for(x, POLLOUT);
		if (rc < 0)
			return rc;
		if (x->given_up)
			return -ECANCELED;
	}
	return 0;
}

/* Reads up to the head, or all of the reply; what comes behind it goes to rest. */
static int receive(struct exchange *x, struct http_reply *r, bool head_only, struct buf *rest)
{
	uint8_t data[4096];

	while (head_only ? !http_reply_has_head(r) : !http_reply_done(r)) {
		int rc = wait_for(x, POLLIN);
		ssize_t n, took;

		if (rc < 0)
			return rc;
		n = io_read_some(x->fd, data, sizeof(data));
		if (n == -EAGAIN)
			continue;
		if (n == 0)
			return http_reply_end(r);
		if (n < 0)
			return (int)n;
		took = http_reply_feed(r, data, (size_t)n);
		if (took < 0)
			return (int)took;
		if (took < n && rest) {
			rc = buf_append(rest, data + took, (size_t)(n - took));
			if (rc < 0)
				return rc;
		}
	}
	return 0;
}

/* The daemon's sentence and what it advises, for a status that was not wanted. */
static int refused(const struct http_call *c, const struct http_reply *r, struct err *err)
{
	json_t *o = json_loadb((const char *)buf_data(&r->body), buf_len(&r->body), 0, NULL);
	const char *error = json_string_value(json_object_get(o, "error"));
	const char *hint = json_string_value(json_object_get(o, "hint"));
	int rc;

	if (!error)
		rc = err_text(err, EPROTO,
			      "%s answered %s with status %d: is that a podflare daemon?",
			      c->to->url, c->path, r->status);
	else
		rc = err_text(err, EREMOTEIO, hint ? "%s (%s)" : "%s%s", error, hint ? hint : "");
	json_decref(o);
	/* It may repeat what a guest wrote, and is shown on a terminal. */
	plain_text(err->msg, '?', "\n");
	return rc;
}

static int failed(const struct http_call *c, int rc, struct err *err)
{
	if (rc == -ECANCELED)
		return err_text(err, ECANCELED, "given up");
	if (rc == -ETIMEDOUT)
		return err_text(err, ETIMEDOUT, "no answer from %s%s in time", c->to->url, c->path);
	if (rc == -EPROTO || rc == -EMSGSIZE)
		return err_text(err, -rc, "what answers at %s is no podflare daemon", c->to->url);
	return err_set(err, -rc, "the connection to %s broke before it answered", c->to->url);
}

static int begin(struct exchange *x, const struct http_call *c, struct err *err)
{
	struct buf out;
	int rc;

	*x = (struct exchange){.c = c, .fd = -1, .stop_fd = c->stop_fd};
	rc = endpoint_connect(c->to, c->stop_fd, &x->fd, err);
	if (rc < 0)
		return rc;
	if (c->timeout_s)
		x->deadline_ns = io_now_ns() + c->timeout_s * SECOND;
	buf_init(&out, REQUEST_MAX);
	rc = build(&out, c);
	if (rc == 0)
		rc = send_all(x, &out);
	buf_free(&out);
	if (rc < 0)
		close_fd(&x->fd);
	return rc < 0 ? failed(c, rc, err) : 0;
}

int http_call(const struct http_call *c, json_t **answer, struct err *err)
{
	struct http_reply r;
	struct exchange x;
	int rc = begin(&x, c, err);

	if (answer)
		*answer = NULL;
	if (rc < 0)
		return rc;
	http_reply_init(&r, HTTP_CALL_BODY_MAX);
	rc = receive(&x, &r, false, NULL);
	if (rc < 0) /* a request that was given up is not answered */
		rc = failed(c, x.given_up ? -ECANCELED : rc, err);
	else if (r.status < 200 || r.status > 299)
		rc = refused(c, &r, err);
	else if (answer && buf_len(&r.body)) {
		*answer = json_loadb((const char *)buf_data(&r.body), buf_len(&r.body), 0, NULL);
		if (!*answer)
			rc = failed(c, -EPROTO, err);
	}
	http_reply_free(&r);
	close_fd(&x.fd);
	return rc;
}

int http_open(const struct http_call *c, int status, int *fd, struct http_reply *r,
	      struct buf *rest, struct err *err)
{
	struct exchange x;
	int rc = begin(&x, c, err);

	if (rc < 0)
		return rc;
	rc = receive(&x, r, true, rest);
	if (rc == 0 && r->status != status) /* its body says why */
		rc = receive(&x, r, false, NULL);
	if (rc < 0)
		rc = failed(c, x.given_up ? -ECANCELED : rc, err);
	else if (r->status != status)
		rc = refused(c, r, err);
	else if (x.given_up)
		rc = failed(c, -ECANCELED, err);
	if (rc == 0)
		*fd = take_fd(&x.fd);
	close_fd(&x.fd);
	return rc;
}
