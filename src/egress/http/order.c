/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The URL that libcurl gets has host and port only, in normal form; the target
 * goes beside it, byte for byte. The address is an option as well: libcurl never resolves, and
 * takes a kept connection only when it leads to the same address.
 * Thread: any. fork: no state.
 */
#define _GNU_SOURCE
#include "egress/http/order.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define TLS_MS 20000L /* connecting and the handshake */

void order_free(struct curl_slist *list)
{
	for (struct curl_slist *l = list; l; l = l->next)
		explicit_bzero(l->data, strlen(l->data));
	curl_slist_free_all(list);
}

static int list_add(struct curl_slist **list, const char *text)
{
	struct curl_slist *new = curl_slist_append(*list, text);

	if (!new)
		return -ENOMEM;
	*list = new;
	return 0;
}

/* libcurl's way to write an empty value is a semicolon. */
static int list_add_field(struct curl_slist **list, const struct http_field *f)
{
	char *text;
	int n, rc;

	if (f->value[0])
		n = asprintf(&text, "%s: %s", f->name, f->value);
	else
		n = asprintf(&text, "%s;", f->name);
	if (n < 0)
		return -ENOMEM;
	rc = list_add(list, text);
	explicit_bzero(text, (size_t)n);
	free(text);
	return rc;
}

static int order_headers(const struct transfer_order *o, struct curl_slist **list)
{
	/* What libcurl would add by itself. */
	static const char *const own[] = {"Accept", "User-Agent", "Content-Type"};
	int rc = list_add(list, "Expect:");

	for (size_t i = 0; i < o->fields->n && rc == 0; i++)
		rc = list_add_field(list, &o->fields->v[i]);
	for (size_t i = 0; i < ARRAY_SIZE(own) && rc == 0; i++) {
		char none[32];

		snprintf(none, sizeof(none), "%s:", own[i]);
		if (!http_fields_get(o->fields, own[i]))
			rc = list_add(list, none);
	}
	if (rc == 0 && o->framing == HTTP_CHUNKED)
		rc = list_add(list, "Transfer-Encoding: chunked");
	return rc;
}

/* "::address:port": for any name and port of the URL. */
static int order_address(const struct transfer_order *o, struct curl_slist **list)
{
	const struct sockaddr_storage *ss = &o->verdict->addr;
	char text[INET6_ADDRSTRLEN], all[sizeof(text) + 16];

	if (ss->ss_family == AF_INET6) {
		const struct sockaddr_in6 *in = (const void *)ss;

		inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof(text));
		snprintf(all, sizeof(all), "::[%s]:%u", text, ntohs(in->sin6_port));
	} else {
		const struct sockaddr_in *in = (const void *)ss;

		inet_ntop(AF_INET, &in->sin_addr, text, sizeof(text));
		snprintf(all, sizeof(all), "::%s:%u", text, ntohs(in->sin_port));
	}
	return list_add(list, all);
}

bool order_is_repeatable(const struct transfer_order *o)
{
	bool safe = strcmp(o->method, "GET") == 0 || strcmp(o->method, "HEAD") == 0 ||
		    strcmp(o->method, "OPTIONS") == 0;

	return safe && o->framing == HTTP_NO_BODY;
}

static CURLcode order_method(CURL *c, const struct transfer_order *o)
{
	bool post = strcmp(o->method, "POST") == 0 || strcmp(o->method, "PUT") == 0 ||
		    strcmp(o->method, "PATCH") == 0;
	CURLcode rc = CURLE_OK;

	if (strcmp(o->method, "HEAD") == 0)
		return curl_easy_setopt(c, CURLOPT_NOBODY, 1L);
	if (o->framing != HTTP_NO_BODY || post) {
		curl_off_t size = o->framing == HTTP_CHUNKED ? -1 : (curl_off_t)o->length;

		rc |= curl_easy_setopt(c, CURLOPT_UPLOAD, 1L);
		rc |= curl_easy_setopt(c, CURLOPT_INFILESIZE_LARGE, size);
	}
	/* libcurl sends again when a kept connection turns out to be closed. */
	if (!order_is_repeatable(o))
		rc |= curl_easy_setopt(c, CURLOPT_FRESH_CONNECT, 1L);
	return rc | curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, o->method);
}

static CURLcode order_limits(CURL *c, bool tls)
{
	CURLcode rc = curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, tls ? "https" : "http");

	rc |= curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	rc |= curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
	rc |= curl_easy_setopt(c, CURLOPT_PROXY, "");
	rc |= curl_easy_setopt(c, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
	rc |= curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
	rc |= curl_easy_setopt(c, CURLOPT_HTTP_CONTENT_DECODING, 0L);
	rc |= curl_easy_setopt(c, CURLOPT_PATH_AS_IS, 1L);
	rc |= curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, TLS_MS);
	rc |= curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 1L);
	rc |= curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 2L);
	rc |= curl_easy_setopt(c, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
	/* No files: transfer_trust() brings the store. */
	rc |= curl_easy_setopt(c, CURLOPT_CAINFO, NULL);
	rc |= curl_easy_setopt(c, CURLOPT_CAPATH, NULL);
	return rc;
}

int order_apply(CURL *c, const struct transfer_order *o, struct curl_slist **headers,
		struct curl_slist **connect_to)
{
	char url[EGRESS_HOST_MAX + 32];
	CURLcode rc;

	if (order_headers(o, headers) < 0 || order_address(o, connect_to) < 0)
		return -ENOMEM;
	snprintf(url, sizeof(url), "%s://%s:%u/", o->tls ? "https" : "http", o->host, o->port);
	rc = order_limits(c, o->tls);
	rc |= curl_easy_setopt(c, CURLOPT_URL, url);
	rc |= curl_easy_setopt(c, CURLOPT_REQUEST_TARGET, o->target);
	rc |= curl_easy_setopt(c, CURLOPT_CONNECT_TO, *connect_to);
	rc |= curl_easy_setopt(c, CURLOPT_HTTPHEADER, *headers);
	rc |= order_method(c, o);
	return rc == CURLE_OK ? 0 : -ENOMEM;
}
