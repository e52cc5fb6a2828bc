/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a policy says of a question, before anything is resolved: requests, tests
 * of the policy and what is open under another one are all judged here. Reads
 * the policy, changes nothing.
 */
#include "egress/egress_impl.h"

#include <stdio.h>

static const enum egress_reason match_reason[] = {
	[EGRESS_NO_RULE] = EGRESS_R_NOT_ALLOWED, [EGRESS_NO_PORT] = EGRESS_R_PORT,
	[EGRESS_NO_METHOD] = EGRESS_R_METHOD,    [EGRESS_NO_PATH] = EGRESS_R_PATH,
	[EGRESS_NEEDS_PLAIN] = EGRESS_R_TUNNEL,  [EGRESS_MATCH] = EGRESS_R_NONE,
};

static void judge_detail(struct judgement *j, const struct egress_question *q)
{
	char target[EGRESS_HOST_MAX + 16];

	text_target(q, j->host, target, sizeof(target));
	switch (j->reason) {
	case EGRESS_R_NOT_ALLOWED:
		snprintf(j->detail, sizeof(j->detail),
			 "%s is not in this sandbox's allowlist%s%.60s%s", target,
			 j->nearest[0] ? "; the nearest rule is \"" : "", j->nearest,
			 j->nearest[0] ? "\"" : "");
		return;
	case EGRESS_R_PORT:
		snprintf(j->detail, sizeof(j->detail),
			 "the allowlist has the host of %s, not the port", target);
		return;
	case EGRESS_R_METHOD:
		snprintf(j->detail, sizeof(j->detail),
			 "the allowlist has %s, not this method of HTTP", target);
		return;
	case EGRESS_R_PATH:
		snprintf(j->detail, sizeof(j->detail), "the allowlist has %s, not this path",
			 target);
		return;
	case EGRESS_R_TUNNEL:
		snprintf(j->detail, sizeof(j->detail),
			 "the allowlist has %s for single methods or paths, not for a tunnel",
			 target);
		return;
	case EGRESS_R_CEILING:
		snprintf(j->detail, sizeof(j->detail),
			 "%s is granted, but the operator of this host does not allow it", target);
		return;
	case EGRESS_R_PLAIN_HTTP:
		snprintf(j->detail, sizeof(j->detail),
			 "headers are injected for %s, and over plain HTTP they would be sent in "
			 "the clear",
			 target);
		return;
	default:
		snprintf(j->detail, sizeof(j->detail), "%s is allowed", target);
	}
}

void judge_question(const struct egress *e, const struct egress_question *q, struct judgement *j)
{
	const struct policy *p = e->policy;
	struct egress_answer a, c = {.match = EGRESS_MATCH};
	struct egress_query query;
	struct err err = {0};

	*j = (struct judgement){.tls = true};
	if (!p) {
		j->reason = EGRESS_R_POLICY;
		snprintf(j->detail, sizeof(j->detail), "%.390s", e->policy_why);
		return;
	}
	if (egress_host_normal(q->host, q->host_len, j->host, &err) < 0 || q->port == 0) {
		j->reason = EGRESS_R_BAD_HOST;
		j->host[0] = '\0';
		snprintf(j->detail, sizeof(j->detail), "%.390s",
			 err.num ? err.msg : "port 0 is no destination");
		return;
	}
	j->intercept = (q->proto == EGRESS_CONNECT || q->proto == EGRESS_SOCKS) &&
		       policy_intercepts(p, j->host);
	query = (struct egress_query){j->host, q->port, q->method, q->path};
	egress_rules_ask(p->allow, &query, &a);
	if (p->ceiling)
		egress_rules_ask(p->ceiling, &query, &c);
	/* Within a tunnel that we open, each request is asked for: methods and paths hold there. */
	if (j->intercept && a.match == EGRESS_NEEDS_PLAIN)
		a.match = EGRESS_MATCH;
	if (j->intercept && c.match == EGRESS_NEEDS_PLAIN)
		c.match = EGRESS_MATCH;
	j->tls = a.tls || (p->ceiling && c.tls);
	snprintf(j->rule, sizeof(j->rule), "%s", a.rule);
	snprintf(j->nearest, sizeof(j->nearest), "%s", a.nearest);
	j->reason = match_reason[a.match];
	if (j->reason == EGRESS_R_NONE && c.match != EGRESS_MATCH)
		j->reason = EGRESS_R_CEILING;
	if (j->reason == EGRESS_R_NONE && q->proto == EGRESS_HTTP && policy_headers(p, j->host))
		j->reason = EGRESS_R_PLAIN_HTTP;
	judge_detail(j, q);
}
