/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The question: which entry allows a destination, and when none does, how near it comes. Everything
 * is compared byte by byte in normal form. Nothing is allocated, so nothing can fail.
 *
 * Any thread; rules are constant. fork: plain memory.
 */
#include "egress/rules_impl.h"

#include <stdio.h>
#include <string.h>

void rules_entry_text(const struct rules_entry *e, char out[RULES_TEXT_MAX])
{
	char port[8] = "";

	if (e->n_ports == 1)
		snprintf(port, sizeof(port), ":%u", (unsigned)e->ports[0]);
	snprintf(out, RULES_TEXT_MAX, "%s%s%s%s%s", e->group, *e->group ? ": " : "",
		 e->wildcard ? "*." : "", e->host, port);
}

/* host ends in ".domain". */
static bool is_below(const char *host, size_t len, const char *domain, size_t domain_len)
{
	return len > domain_len + 1 && host[len - domain_len - 1] == '.' &&
	       memcmp(host + len - domain_len, domain, domain_len) == 0;
}

static bool has_name(const struct rules_entry *e, const char *host, size_t len)
{
	if (e->wildcard)
		return is_below(host, len, e->host, e->host_len);
	return len == e->host_len && memcmp(host, e->host, len) == 0;
}

bool rules_entry_has_name(const struct rules_entry *e, const char *host)
{
	return has_name(e, host, strlen(host));
}

static bool has_port(const struct rules_entry *e, uint16_t port)
{
	for (size_t i = 0; i < e->n_ports; i++) {
		if (e->ports[i] == port)
			return true;
	}
	return false;
}

static bool has_method(const struct rules_entry *e, const char *method)
{
	for (size_t i = 0; i < e->methods.n; i++) {
		if (strcmp(e->methods.v[i], method) == 0)
			return true;
	}
	return e->methods.n == 0;
}

static bool has_path(const struct rules_entry *e, const char *path)
{
	for (size_t i = 0; i < e->paths.n; i++) {
		if (rules_path_under(path, e->paths.v[i]))
			return true;
	}
	return e->paths.n == 0;
}

static enum egress_match match(const struct rules_entry *e, const struct egress_query *q,
			       size_t host_len, bool plain)
{
	if (!has_name(e, q->host, host_len))
		return EGRESS_NO_RULE;
	if (!has_port(e, q->port))
		return EGRESS_NO_PORT;
	if ((e->methods.n > 0 && !q->method) || (e->paths.n > 0 && !q->path))
		return EGRESS_NEEDS_PLAIN;
	if (e->methods.n > 0 && !has_method(e, q->method))
		return EGRESS_NO_METHOD;
	if (e->paths.n > 0 && (!plain || !has_path(e, q->path)))
		return EGRESS_NO_PATH;
	return EGRESS_MATCH;
}

/* One letter too much, too few, wrong, or two that changed places. */
static bool one_slip(const char *a, size_t n, const char *b, size_t m)
{
	size_t head = 0, tail = 0;

	if (n > m + 1 || m > n + 1)
		return false;
	while (head < n && head < m && a[head] == b[head])
		head++;
	while (tail < n - head && tail < m - head && a[n - 1 - tail] == b[m - 1 - tail])
		tail++;
	n -= head + tail;
	m -= head + tail;
	if (n <= 1 && m <= 1)
		return true;
	return n == 2 && m == 2 && a[head] == b[head + 1] && a[head + 1] == b[head];
}

/* The last two labels: what mostly belongs to one owner. */
static const char *owner(const char *host)
{
	const char *p = strrchr(host, '.');

	while (p && p > host && p[-1] != '.')
		p--;
	return p ? p : host;
}

/* How near an entry comes that does not have the name; 0: not at all. */
static int nearness(const struct rules_entry *e, const char *host, size_t len)
{
	if (len == e->host_len && memcmp(host, e->host, len) == 0)
		return 4; /* the name itself, and the entry is for those below it */
	if (is_below(host, len, e->host, e->host_len))
		return 3; /* below a name that is allowed alone */
	if (one_slip(host, len, e->host, e->host_len))
		return 2;
	return strcmp(owner(host), owner(e->host)) == 0;
}

void egress_rules_ask(const struct egress_rules *r, const struct egress_query *q,
		      struct egress_answer *a)
{
	size_t len = strlen(q->host);
	bool plain = q->path && rules_path_plain(q->path);
	const struct rules_entry *best = NULL;
	int near = 0;

	*a = (struct egress_answer){.match = EGRESS_NO_RULE, .tls = true};
	for (size_t i = 0; i < r->n; i++) {
		const struct rules_entry *e = &r->v[i];
		enum egress_match m = match(e, q, len, plain);
		int n = m == EGRESS_NO_RULE ? nearness(e, q->host, len) : 0;

		if (m > a->match || (a->match == EGRESS_NO_RULE && n > near)) {
			a->match = m;
			near = n;
			best = e;
		}
		if (m == EGRESS_MATCH)
			a->tls &= e->tls;
	}
	if (!best)
		return;
	if (a->match >= EGRESS_NEEDS_PLAIN)
		rules_entry_text(best, a->rule);
	if (a->match != EGRESS_MATCH)
		rules_entry_text(best, a->nearest);
}
