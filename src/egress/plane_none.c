/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In the place of the HTTP plane (plane.h) until it is there: whatever is HTTP
 * and not CONNECT is answered with 501, and interceptions are refused.
 */
#include "egress/plane.h"

#include "egress/linger.h"

#include <errno.h>
#include <unistd.h>

struct http_plane {
	struct egress *e;
	struct lingers lingers;
};

struct http_plane *http_plane_new(struct loop *loop, struct egress *e, struct err *err)
{
	struct http_plane *p = calloc(1, sizeof(*p));

	if (!p) {
		err_text(err, ENOMEM, "no memory");
		return NULL;
	}
	p->e = e;
	lingers_init(&p->lingers, loop, e);
	return p;
}

void http_plane_free(struct http_plane *p)
{
	if (!p)
		return;
	lingers_free(&p->lingers);
	free(p);
}

int http_plane_use_ca(struct http_plane *p, const json_t *ca, json_t **out, struct err *err)
{
	(void)p;
	(void)ca;
	(void)out;
	return err_text(err, ENOSYS, "interception is not there");
}

void http_plane_take(struct http_plane *p, int fd, uint64_t stream, const char *exec,
		     const struct http_origin *origin)
{
	struct egress_question q = {.proto = EGRESS_HTTP, .stream = stream, .host = ""};
	struct egress_verdict v;

	(void)exec;
	(void)origin;
	egress_denied(p->e, &q, EGRESS_R_BAD_REQUEST, "plain HTTP is not served", &v);
	linger_deny_http(&p->lingers, fd, &q, &v, 501);
}

void intercept_take(struct http_plane *p, int fd, uint64_t stream, const char *host, uint16_t port)
{
	(void)host;
	(void)port;
	close(fd);
	egress_stream_end(p->e, stream);
}
