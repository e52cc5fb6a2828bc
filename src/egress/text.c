/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sentences of denials: what was refused and what can be done about it, for a
 * person or a model that reads only this. They hold nothing a guest may not
 * know: its own allowlist, the name it asked for, no address of the host's.
 * Pure; any thread.
 */
#define _GNU_SOURCE
#include "egress/egress_impl.h"

#include <stdio.h>
#include <string.h>

/* Hints that need nothing of the question. */
static const char *const hints[EGRESS_REASONS] = {
	[EGRESS_R_BAD_HOST] =
		"Use the plain name of a host, like \"api.example.com\": addresses in "
		"any spelling, a trailing dot, and odd characters are refused.",
	[EGRESS_R_CEILING] = "The operator of this host allows it to no sandbox. A new grant does "
			     "not help, only the operator does.",
	[EGRESS_R_PLAIN_HTTP] = "Use https, or http://HOST.egress/ for which the proxy speaks TLS.",
	[EGRESS_R_ADDRESS] = "Only public addresses can be reached. The operator can allow a range "
			     "of others (allow_ranges).",
	[EGRESS_R_NO_NAME] = "Check the spelling of the name.",
	[EGRESS_R_RESOLVER] = "The name is allowed, but the host's resolver gave no answer. Try "
			      "again later.",
	[EGRESS_R_UPSTREAM] = "The destination is allowed, but cannot be reached now. Try again "
			      "later.",
	[EGRESS_R_UPSTREAM_TLS] = "The destination is allowed, but its certificate is not one that "
				  "this host trusts.",
	[EGRESS_R_SNI_MISSING] = "Connect with TLS to a name: the client has to send it (SNI).",
	[EGRESS_R_SNI_MISMATCH] = "The name in TLS (SNI) has to be the name that the proxy was "
				  "asked for.",
	[EGRESS_R_ECH] = "Turn Encrypted Client Hello off in the client.",
	[EGRESS_R_NOT_TLS] =
		"This tunnel has to carry TLS. For plain HTTP, send the request to the "
		"proxy itself (http_proxy); for something else, ask for a rule with "
		"\"tls\": false.",
	[EGRESS_R_BAD_REQUEST] = "Use an ordinary client with the proxy http://127.0.0.1:3128 or "
				 "socks5h://127.0.0.1:1080.",
	[EGRESS_R_HOST_MISMATCH] = "The Host field has to be the host of the URL.",
	[EGRESS_R_UPGRADE] = "Upgrades of plain HTTP are refused. Use TLS (https, wss) instead.",
	[EGRESS_R_CONNECTIONS] = "Close connections that are not needed, then try again.",
	[EGRESS_R_BYTES] = "Nothing more can be sent or received before the limit is raised.",
	[EGRESS_R_IDLE] = "Connect again when there is something to send.",
	[EGRESS_R_TOTAL] = "Connect again.",
	[EGRESS_R_POLICY] = "Egress does not work in this sandbox until it gets a policy that can "
			    "be used. Trying again does not help.",
	[EGRESS_R_POLICY_CHANGED] = "The grant was changed while this connection was open.",
};

const char *egress_proto_text(enum egress_proto p)
{
	switch (p) {
	case EGRESS_CONNECT:
		return "connect";
	case EGRESS_SOCKS:
		return "socks";
	case EGRESS_HTTP:
		return "http";
	case EGRESS_GATEWAY:
		return "gateway";
	case EGRESS_INTERCEPT:
		return "intercept";
	}
	return "http";
}

unsigned int egress_denial_status(enum egress_reason r)
{
	return r == EGRESS_R_UPSTREAM || r == EGRESS_R_UPSTREAM_TLS ? 502 : 403;
}

void text_printable(char *out, size_t cap, const char *s, size_t len)
{
	static const char hex[] = "0123456789abcdef";
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)s[i];
		bool plain = c >= ' ' && c < 0x7f && c != '\\';

		if (n + (plain ? 1 : 4) >= cap)
			break;
		if (plain) {
			out[n++] = (char)c;
			continue;
		}
		out[n++] = '\\';
		out[n++] = 'x';
		out[n++] = hex[c >> 4];
		out[n++] = hex[c & 15];
	}
	out[n] = '\0';
}

void text_target(const struct egress_question *q, const char *host, char *out, size_t len)
{
	char name[EGRESS_HOST_MAX + 1];

	if (!host[0]) {
		text_printable(name, 80, q->host, q->host_len);
		host = name;
	}
	snprintf(out, len, "%s:%u", host, (unsigned int)q->port);
}

/* The entries of the allowlist, as many as have room. */
static void text_allowed(const struct egress *e, char *out, size_t len)
{
	json_t *list = e->policy ? egress_rules_json(e->policy->allow) : NULL, *one;
	size_t n = 0, i;

	out[0] = '\0';
	json_array_foreach(list, i, one)
	{
		const char *s =
			json_string_value(json_is_object(one) ? json_object_get(one, "host") : one);

		if (!s || n + strlen(s) + 8 > len) {
			snprintf(out + n, len - n, ", ...");
			break;
		}
		n += (size_t)snprintf(out + n, len - n, "%s%s", n ? ", " : "", s);
	}
	json_decref(list);
}

/* An entry that would allow the host and port. */
static void text_entry(const struct egress_question *q, const char *host, char *out, size_t len)
{
	if (q->port == 443 || q->port == 80)
		snprintf(out, len, "%s", host);
	else
		snprintf(out, len, "%s:%u", host, (unsigned int)q->port);
}

void text_hint(const struct egress *e, enum egress_reason why, const struct egress_question *q,
	       const struct judgement *j, char *out, size_t len)
{
	const char *host = j ? j->host : "";
	char entry[EGRESS_HOST_MAX + 16], allowed[160], port[8] = "";

	text_entry(q, host, entry, sizeof(entry));
	switch (why) {
	case EGRESS_R_NOT_ALLOWED:
		text_allowed(e, allowed, sizeof(allowed));
		snprintf(out, len,
			 "This sandbox may reach %s%s. Ask for a grant with \"%.80s\" "
			 "(update_egress) or use what is allowed.",
			 allowed[0] ? "only: " : "nothing", allowed, entry);
		return;
	case EGRESS_R_PORT:
		snprintf(out, len,
			 "The rule \"%.100s\" does not have this port. Ask for a grant with "
			 "\"%.80s:%u\".",
			 j ? j->nearest : "", host, (unsigned int)q->port);
		return;
	case EGRESS_R_METHOD:
	case EGRESS_R_PATH:
		snprintf(out, len, "The rule \"%.100s\" allows other %s of this host only.",
			 j ? j->nearest : "", why == EGRESS_R_METHOD ? "methods" : "paths");
		return;
	case EGRESS_R_TUNNEL:
		if (q->port != 443)
			snprintf(port, sizeof(port), ":%u", (unsigned int)q->port);
		snprintf(out, len,
			 "The rule \"%.100s\" is for single methods or paths, which cannot be "
			 "seen in a tunnel. Use http://%.80s.egress%s/ with the proxy, which "
			 "speaks TLS to the host itself.",
			 j ? j->nearest : "", host, port);
		return;
	default:
		snprintf(out, len, "%s", hints[why] ? hints[why] : "");
	}
}

json_t *egress_denial_json(const struct egress_question *q, const struct egress_verdict *v)
{
	char host[EGRESS_HOST_MAX + 1], detail[sizeof(v->detail)], hint[sizeof(v->hint)];

	if (v->host[0])
		snprintf(host, sizeof(host), "%s", v->host);
	else
		text_printable(host, sizeof(host), q->host, q->host_len);
	text_printable(detail, sizeof(detail), v->detail, strlen(v->detail));
	text_printable(hint, sizeof(hint), v->hint, strlen(v->hint));
	return json_pack("{s:s, s:s, s:i, s:s, s:s, s:s}", "code", "egress_denied", "host", host,
			 "port", (int)q->port, "reason", egress_reason_text(v->reason), "detail",
			 detail, "hint", hint);
}
