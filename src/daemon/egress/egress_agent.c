/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest's agent is told: whether there is egress, and the certificate of the
 * CA that intercepts. With RENEW first; later changes by EGRESS, one request at a time,
 * until it knows what holds. Nothing is enforced there: an agent that does not answer
 * only leaves its guest with the wrong environment.
 */
#include "daemon/agent_failure.h"
#include "daemon/daemon.h"
#include "daemon/egress/egress_impl.h"
#include "daemon/probe.h"
#include "daemon/limits.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static bool wants_ca(const struct egress_sandbox *e)
{
	return e->grant && e->grant->intercept && e->ca;
}

char *egress_agent_text(const struct egress_sandbox *e, bool *on, bool *ca)
{
	json_t *o;
	char *text;

	*on = e->grant != NULL;
	*ca = wants_ca(e);
	o = json_pack("{s:b, s:O?}", "on", *on, "ca",
		      *ca ? json_object_get(e->ca, "cert_pem") : NULL);
	text = json_text(o);
	json_decref(o);
	return text;
}

static bool up_to_date(const struct egress_sandbox *e)
{
	return e->known && e->told_on == (e->grant != NULL) && e->told_ca == wants_ca(e);
}

bool egress_agent_settled(const struct egress_sandbox *e)
{
	return !e->tell && (up_to_date(e) || e->tell_failure[0]);
}

/* The request is over; the stream has been released or closed. */
static void over(struct egress_sandbox *e, const char *failure)
{
	e->tell = NULL;
	loop_timer_cancel(&e->tell_limit);
	e->known = !failure;
	snprintf(e->tell_failure, sizeof(e->tell_failure), "%s", failure ? failure : "");
	if (!failure) {
		e->told_on = e->asked_on;
		e->told_ca = e->asked_ca;
		egress_agent_tell(e);
	}
	egress_check(e);
}

static void lost(struct egress_sandbox *e, const char *why)
{
	struct sandbox *sb = e->sb;

	if (sandbox_is_ending(sb) || !e->tell)
		return;
	agent_close(e->tell);
	over(e, why);
	probe_start(sb);
}

static void on_stream(struct agent_stream *s)
{
	struct egress_sandbox *e = s->user;
	struct agent_failure why;
	struct frame f;
	int rc = agent_next(s, &f);

	if (rc == 0)
		return;
	if (rc == 1 && f.type == FRAME_OK) {
		agent_release(s);
		over(e, NULL);
	} else if (rc == 1 && f.type == FRAME_ERROR) {
		agent_failure_parse(&f, &why);
		agent_release(s);
		over(e, why.message);
	} else {
		lost(e, agent_error_text(rc < 0 ? rc : -EPROTO));
	}
}

static void on_limit(struct loop_timer *t)
{
	struct egress_sandbox *e = t->arg;
	const struct config *c = &e->sb->d->config;

	if (e->sb->agent.hold) /* frozen for a fork: it answers later */
		loop_timer_set(&e->sb->d->loop, t, c->pong_within_s * SECOND_NS);
	else
		lost(e, "the guest's agent did not answer");
}

void egress_renewed(struct sandbox *sb, const struct frame *ok)
{
	struct egress_sandbox *e = sb->egress;
	json_t *o = json_safe_load_few((const char *)ok->payload, ok->len, LIMIT_AGENT_VALUES, 0);
	const char *why = json_string_value(json_object_get(o, "egress_error"));

	/* Without memory nobody knows: as if it had not been asked, it is asked again. */
	if (e && !o && json_safe_lacked())
		e->asked_on = e->asked_ca = false;
	else if (e && why)
		agent_failure_text(e->tell_failure, sizeof(e->tell_failure),
				   *why ? why : "the guest's agent cannot have egress");
	json_decref(o);
}

void egress_agent_tell(struct egress_sandbox *e)
{
	struct sandbox *sb = e->sb;
	const struct config *c = &sb->d->config;
	_cleanup_free char *text = NULL;
	struct err err = {0};

	/* Before it is READY its RENEW tells it. */
	if (sb->state != SANDBOX_READY || e->tell || up_to_date(e) || egress_awaits_ca(e))
		return;
	text = egress_agent_text(e, &e->asked_on, &e->asked_ca);
	e->tell = text ? agent_open(&sb->agent, on_stream, e, &err) : NULL;
	if (!e->tell) {
		snprintf(e->tell_failure, sizeof(e->tell_failure), "%s",
			 text ? err.msg : "out of memory");
		return;
	}
	e->tell_failure[0] = '\0';
	e->tell_limit = (struct loop_timer){.fn = on_limit, .arg = e};
	loop_timer_set(&sb->d->loop, &e->tell_limit,
		       (uint64_t)(c->ping_after_s + c->pong_within_s) * SECOND_NS);
	agent_send(e->tell, FRAME_EGRESS, text, strlen(text));
}

void egress_agent_end(struct egress_sandbox *e)
{
	agent_close(e->tell);
	e->tell = NULL;
	loop_timer_cancel(&e->tell_limit);
}
