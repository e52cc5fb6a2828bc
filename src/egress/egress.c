/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The proxy's state: start, policies, streams. One object for the process, made
 * before the jail and used on the loop's thread alone.
 */
#define _GNU_SOURCE
#include "egress/egress_impl.h"

#include "egress/plane.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define HOST_CA_MAX (8u << 20)
#define PATIENCE_S  30u

struct egress *egress_new(struct loop *loop, int ctl, const char *ca_file, struct err *err)
{
	struct egress *e = calloc(1, sizeof(*e));
	int rc;

	if (!e) {
		err_text(err, ENOMEM, "no memory");
		return NULL;
	}
	e->loop = loop;
	e->ctl = ctl;
	list_init(&e->streams);
	list_init(&e->askings);
	list_init(&e->grants);
	list_init(&e->thirsty);
	e->cutter.arg = e->refill.arg = e;
	snprintf(e->policy_why, sizeof(e->policy_why), "there is no policy yet");
	rc = io_read_file(ca_file, HOST_CA_MAX, &e->host_ca, &e->host_ca_len);
	if (rc < 0)
		log_warn("cannot read the CAs of this host from %s: %s", ca_file, strerror(-rc));
	rc = own_learn(&e->own, err);
	if (rc == 0)
		rc = resolver_new(&e->resolver, loop, err);
	if (rc == 0)
		e->plane = http_plane_new(loop, e, err);
	if (rc < 0 || !e->plane) {
		egress_free(e);
		return NULL;
	}
	return e;
}

void egress_free(struct egress *e)
{
	if (!e)
		return;
	http_plane_free(e->plane);
	grant_cut_all(e, EGRESS_R_POLICY);
	ask_give_up_all(e);
	resolver_free(e->resolver);
	own_free(e->own);
	loop_timer_cancel(&e->cutter);
	loop_timer_cancel(&e->refill);
	list_for_each_safe (s, &e->streams, struct egress_stream, link) {
		free(s->exec);
		free(s);
	}
	policy_free(e->policy);
	free(e->host_ca);
	free(e->all_ca);
	free(e);
}

struct http_plane *egress_plane(struct egress *e)
{
	return e->plane;
}

uint64_t egress_patience_s(const struct egress *e)
{
	return e->policy && e->policy->limits.idle_s < PATIENCE_S ? e->policy->limits.idle_s
								  : PATIENCE_S;
}

uint64_t egress_idle_ns(const struct egress *e)
{
	return e->policy ? e->policy->limits.idle_s * 1000000000ull : 0;
}

uint64_t egress_total_ns(const struct egress *e)
{
	return e->policy ? e->policy->limits.total_s * 1000000000ull : 0;
}

size_t egress_spare_connections(const struct egress *e)
{
	return e->policy && e->policy->limits.connections > e->grants_n
		       ? e->policy->limits.connections - e->grants_n
		       : 0;
}

uint64_t egress_policy_serial(const struct egress *e)
{
	return e->policy_serial;
}

const char *egress_ca_pem(const struct egress *e, size_t *len)
{
	*len = e->all_ca ? e->all_ca_len : e->host_ca_len;
	return e->all_ca ? e->all_ca : e->host_ca ? e->host_ca : "";
}

/* The host's CAs and the policy's in one text. */
static int egress_join_ca(struct egress *e, const struct policy *p, char **out, size_t *len)
{
	int n;

	*out = NULL;
	if (!p || !p->upstream_ca)
		return 0;
	n = asprintf(out, "%s\n%s\n", e->host_ca ? e->host_ca : "", p->upstream_ca);
	if (n < 0) {
		*out = NULL;
		return -ENOMEM;
	}
	*len = (size_t)n;
	return 0;
}

/* p replaces the policy there is, and is owned; NULL: nothing is allowed, because of why. */
static void egress_set_policy(struct egress *e, struct policy *p, const char *why)
{
	struct policy *old = e->policy;

	e->policy = p;
	e->policy_serial++;
	if (!p)
		snprintf(e->policy_why, sizeof(e->policy_why), "the policy cannot be used: %.400s",
			 why);
	/* A rate that was low must not leave a debt, nor one that was high a gift. */
	e->tokens = 0;
	e->tokens_at_ns = io_now_ns();
	grant_review_all(e);
	http_plane_new_policy(e->plane);
	ask_restart_all(e);
	policy_free(old);
}

int egress_load_policy(struct egress *e, int fd, json_t **ca, struct err *err)
{
	_cleanup_free char *all_ca = NULL;
	struct policy *p = NULL;
	size_t len = 0;
	int rc = policy_read(&p, fd, err);

	*ca = NULL;
	/* Changing servers forgets what is under way, which begins again below in any case. */
	ask_pause_all(e);
	if (rc == 0 && resolver_set_servers(e->resolver, p->resolvers) < 0)
		rc = err_text(err, EINVAL, "\"resolvers\" has something else than addresses");
	if (rc == 0 && egress_join_ca(e, p, &all_ca, &len) < 0)
		rc = err_text(err, ENOMEM, "no memory");
	if (rc == 0 && p->intercepts)
		rc = http_plane_use_ca(e->plane, p->ca, ca, err);
	free(e->all_ca);
	e->all_ca = rc == 0 ? take_ptr(all_ca) : NULL;
	e->all_ca_len = len;
	if (rc < 0) {
		policy_free(p);
		p = NULL;
	}
	egress_set_policy(e, p, err->msg);
	return rc;
}

static struct egress_stream *egress_stream_find(struct egress *e, uint64_t id)
{
	list_for_each (s, &e->streams, struct egress_stream, link)
		if (s->id == id)
			return s;
	return NULL;
}

int egress_stream_begin(struct egress *e, uint64_t stream, const char *exec)
{
	struct egress_stream *s;

	if (e->streams_n >= EGRESS_STREAMS_MAX || egress_stream_find(e, stream))
		return -EBUSY;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->id = stream;
	s->exec = exec ? strdup(exec) : NULL;
	list_add_tail(&e->streams, &s->link);
	e->streams_n++;
	return 0;
}

void egress_stream_end(struct egress *e, uint64_t stream)
{
	struct egress_stream *s = egress_stream_find(e, stream);

	if (!s)
		return;
	list_del(&s->link);
	e->streams_n--;
	free(s->exec);
	free(s);
}
