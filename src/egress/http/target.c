/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cutting, never repairing: an authority is host[:port] with the few bytes that
 * a name may have, or it is refused.
 * Thread: any. fork: no state.
 */
#include "egress/http/target.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#define GATEWAY ".egress"

static int refuse(struct http_refusal *why, enum egress_reason reason, const char *detail,
		  const char *hint)
{
	*why = (struct http_refusal){reason, detail, hint};
	return -EBADMSG;
}

struct authority {
	const char *host;
	size_t len;
	uint16_t port; /* 0: none was given */
};

static bool is_name_byte(unsigned char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
	       c == '-' || c == '.' || c == '_' || c >= 0x80;
}

/* A port in its one spelling, 1 to 65535; or 0. */
static uint16_t parse_port(const char *p, size_t n)
{
	uint32_t port = 0;

	if (n == 0 || n > 5 || *p == '0')
		return 0;
	for (size_t i = 0; i < n; i++) {
		if (p[i] < '0' || p[i] > '9')
			return 0;
		port = port * 10 + (uint32_t)(p[i] - '0');
	}
	return port > 65535 ? 0 : (uint16_t)port;
}

static int parse_authority(struct authority *a, const char *p, size_t n, struct http_refusal *why)
{
	if (memchr(p, '@', n))
		return refuse(why, EGRESS_R_BAD_REQUEST, "the URL has a user name (@)",
			      "send credentials in a header");
	if (n && *p == '[')
		return refuse(why, EGRESS_R_BAD_HOST, "the URL has an address instead of a name",
			      "use the name of the host");
	*a = (struct authority){.host = p};
	while (a->len < n && is_name_byte((unsigned char)p[a->len]))
		a->len++;
	if (a->len == 0 || a->len > HTTP_HOST_MAX)
		return refuse(why, EGRESS_R_BAD_HOST, "the URL has no name of a host", NULL);
	if (a->len == n)
		return 0;
	if (p[a->len] != ':')
		return refuse(why, EGRESS_R_BAD_HOST,
			      "the name of the host has a character that no name has", NULL);
	a->port = parse_port(p + a->len + 1, n - a->len - 1);
	if (!a->port)
		return refuse(why, EGRESS_R_BAD_REQUEST, "the port is not a number of 1 to 65535",
			      NULL);
	return 0;
}

static int mismatch(struct http_refusal *why)
{
	return refuse(why, EGRESS_R_HOST_MISMATCH,
		      "the Host header is not the host that the request is for",
		      "let the HTTP client set Host from the URL");
}

/* Host must say the same as the authority that counts. */
static int check_host(const struct authority *a, uint16_t port, const char *host,
		      struct http_refusal *why)
{
	struct http_refusal other;
	struct authority h;

	if (parse_authority(&h, host, strlen(host), &other) < 0)
		return mismatch(why);
	if (h.len != a->len || strncasecmp(h.host, a->host, a->len) != 0 ||
	    (h.port ? h.port : port) != (a->port ? a->port : port))
		return mismatch(why);
	return 0;
}

static void set_path(struct http_target *t, const char *path)
{
	t->path = *path ? path : "/";
	t->path_len = strcspn(t->path, "?");
}

static void set_host(struct http_target *t, const char *host, size_t len)
{
	memcpy(t->host, host, len); /* parse_authority() bounds it */
	t->host[len] = '\0';
}

static int parse_inside(struct http_target *t, const char *uri, const char *host,
			const struct http_origin *origin, struct http_refusal *why)
{
	struct authority a = {origin->host, strlen(origin->host), origin->port};
	int rc;

	t->proto = EGRESS_INTERCEPT;
	t->tls = true;
	t->port = origin->port;
	set_host(t, a.host, a.len);
	if (*uri != '/')
		return refuse(why, EGRESS_R_BAD_REQUEST,
			      "within a tunnel the first line has a path, not a URL", NULL);
	if (!host)
		return mismatch(why);
	/* Host leaves out the port of the scheme only. */
	rc = check_host(&a, 443, host, why);
	if (rc < 0)
		return rc;
	set_path(t, uri);
	return 0;
}

/* "name.egress" is the gateway to name. */
static void parse_gateway(struct http_target *t, const struct authority *a)
{
	const size_t tail = sizeof(GATEWAY) - 1;

	if (a->len <= tail || strncasecmp(a->host + a->len - tail, GATEWAY, tail) != 0)
		return;
	t->proto = EGRESS_GATEWAY;
	t->tls = true;
	/* A client may leave out :80, so that it cannot mean another port than none. */
	t->port = a->port && a->port != 80 ? a->port : 443;
	t->host[a->len - tail] = '\0';
}

static int parse_absolute(struct http_target *t, const char *p, const char *host,
			  struct http_refusal *why)
{
	size_t n = strcspn(p, "/?");
	struct authority a;
	int rc = parse_authority(&a, p, n, why);

	if (rc < 0)
		return rc;
	t->port = a.port ? a.port : 80;
	set_host(t, a.host, a.len);
	parse_gateway(t, &a);
	if (host) {
		rc = check_host(&a, 80, host, why);
		if (rc < 0)
			return rc;
	}
	if (p[n] == '?')
		return refuse(why, EGRESS_R_BAD_REQUEST, "the URL has a query but no path",
			      "put a / before the ?");
	set_path(t, p + n);
	return 0;
}

int http_target_parse(struct http_target *t, const char *method, const char *uri, const char *host,
		      const struct http_origin *origin, struct http_refusal *why)
{
	*t = (struct http_target){.proto = origin ? EGRESS_INTERCEPT : EGRESS_HTTP};
	if (strcasecmp(method, "CONNECT") == 0)
		return refuse(why, EGRESS_R_BAD_REQUEST,
			      "CONNECT must be the first request of a connection",
			      "open a new connection to the proxy for it");
	if (strcasecmp(method, "TRACE") == 0 || strcasecmp(method, "TRACK") == 0)
		return refuse(why, EGRESS_R_METHOD, "this method is never let through", NULL);
	if (origin)
		return parse_inside(t, uri, host, origin, why);
	if (strncasecmp(uri, "http://", 7) == 0)
		return parse_absolute(t, uri + 7, host, why);
	if (strncasecmp(uri, "https://", 8) == 0)
		return refuse(why, EGRESS_R_BAD_REQUEST,
			      "an https URL was sent to the proxy in the open",
			      "use CONNECT (as HTTP clients do by themselves when HTTPS_PROXY is "
			      "set), or http://HOST.egress/ for which the proxy speaks TLS");
	if (*uri == '/')
		return refuse(why, EGRESS_R_BAD_REQUEST, "this is a proxy, and the URL has no host",
			      "use it as HTTP proxy: http_proxy, https_proxy");
	return refuse(why, EGRESS_R_BAD_REQUEST, "the URL does not begin with http://", NULL);
}
