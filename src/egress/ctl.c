/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control messages: parsed, checked, carried out. A descriptor that came with a
 * message is closed here unless a connection took it.
 */
#include "egress/ctl.h"

#include "egress/egress_impl.h"
#include "lib/fdpass.h"
#include "lib/json_safe.h"
#include "lib/log.h"
#include "proto/egress.h"

#include <errno.h>
#include <string.h>

#define CTL_TURNS 32 /* messages of one event; what is left brings the next one */
#define HTTP_PORT 80

struct ctl_test {
	struct ctl *c;
	json_int_t serial;
};

static void ctl_end(struct ctl *c, int rc)
{
	c->rc = rc;
	loop_del(&c->src);
	loop_quit(c->loop);
}

static int ctl_policy(struct ctl *c, const json_t *m, int *fd)
{
	json_t *serial = json_object_get(m, "serial"), *ca = NULL;
	struct err err = {0};
	int rc;

	if (!json_is_integer(serial) || *fd < 0)
		return -EPROTO;
	rc = egress_load_policy(c->e, *fd, &ca, &err);
	audit_send(c->e, json_pack("{s:s, s:I, s:s?, s:o?}", "type", "policy", "serial",
				   json_integer_value(serial), "error", rc < 0 ? err.msg : NULL,
				   "ca", ca));
	return 0;
}

static int ctl_stream(struct ctl *c, const json_t *m, int *fd)
{
	json_t *id = json_object_get(m, "id"), *exec = json_object_get(m, "exec");

	if (!json_is_integer(id) || json_integer_value(id) < 0 || *fd < 0)
		return -EPROTO;
	if (exec && !json_is_null(exec) && !json_is_string(exec))
		return -EPROTO;
	conn_take(c->conns, take_fd(fd), (uint64_t)json_integer_value(id), json_string_value(exec));
	return 0;
}

static int ctl_used(struct ctl *c, const json_t *m, int *fd)
{
	json_t *bytes = json_object_get(m, "bytes");

	if (*fd >= 0 || !json_is_integer(bytes) || json_integer_value(bytes) < 0)
		return -EPROTO;
	grant_used_before(c->e, (uint64_t)json_integer_value(bytes));
	return 0;
}

static void ctl_on_tested(void *arg, json_t *reply)
{
	struct ctl_test *t = arg;

	json_object_set_new(reply, "type", json_string("test"));
	json_object_set_new(reply, "serial", json_integer(t->serial));
	audit_send(t->c->e, reply);
	free(t);
}

/*
 * With a method and a path it is a request that the proxy would see: at HTTP's port plain, at
 * others of the gateway or of a host that is intercepted, which are judged alike. Without them a
 * tunnel.
 */
static int ctl_test(struct ctl *c, const json_t *m, int *fd)
{
	json_t *host = json_object_get(m, "host"), *method = json_object_get(m, "method");
	json_t *path = json_object_get(m, "path"), *serial = json_object_get(m, "serial");
	json_int_t port = json_integer_value(json_object_get(m, "port"));
	struct egress_question q = {.proto = EGRESS_CONNECT};
	struct ctl_test *t;

	if (*fd >= 0 || !json_is_string(host) || !json_is_integer(serial) || port < 0 ||
	    port > 65535)
		return -EPROTO;
	q.host = json_string_value(host);
	q.host_len = json_string_length(host);
	q.port = (uint16_t)port;
	q.method = json_string_value(method);
	q.path = json_string_value(path);
	if (q.method || q.path)
		q.proto = q.port == HTTP_PORT ? EGRESS_HTTP : EGRESS_GATEWAY;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	*t = (struct ctl_test){c, json_integer_value(serial)};
	egress_test(c->e, &q, ctl_on_tested, t);
	return 0;
}

static const struct {
	const char *type;
	int (*fn)(struct ctl *c, const json_t *m, int *fd);
} messages[] = {
	{"policy", ctl_policy},
	{"stream", ctl_stream},
	{"test", ctl_test},
	{"used", ctl_used},
};

static int ctl_dispatch(struct ctl *c, const char *text, size_t len, int *fd)
{
	json_error_t where;
	json_t *m = json_safe_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
	const char *type = json_string_value(json_object_get(m, "type"));
	int rc = -EPROTO;

	for (size_t i = 0; type && i < ARRAY_SIZE(messages); i++)
		if (strcmp(type, messages[i].type) == 0)
			rc = messages[i].fn(c, m, fd);
	json_decref(m);
	return rc;
}

static void ctl_on_event(struct loop_src *src, uint32_t events)
{
	static char text[EGRESS_MSG_MAX]; /* one thread, one message at a time */
	struct ctl *c = src->arg;

	(void)events;
	for (int i = 0; i < CTL_TURNS && c->src.loop; i++) {
		_cleanup_fd int fd = -1;
		size_t nfds = 1;
		ssize_t n = fdpass_recv(src->fd, text, sizeof(text), &fd, &nfds, MSG_DONTWAIT);

		if (n == -EAGAIN)
			return;
		if (n == -EMFILE)
			continue; /* the connection that came is closed */
		if (n <= 0) {
			ctl_end(c, n == -ECONNRESET ? 0 : (int)n);
			return;
		}
		n = ctl_dispatch(c, text, (size_t)n, &fd);
		if (n < 0) {
			log_error("a message of the daemon is not understood: %s",
				  strerror((int)-n));
			ctl_end(c, (int)n);
			return;
		}
	}
}

int ctl_init(struct ctl *c, struct loop *loop, struct egress *e, struct conns *conns, int fd)
{
	*c = (struct ctl){.loop = loop, .e = e, .conns = conns};
	c->src = (struct loop_src){.fd = -1, .fn = ctl_on_event, .arg = c};
	return loop_add(loop, &c->src, fd, EPOLLIN);
}
