/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "egress/http/transfer_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* The session, which libcurl tells only while the transfer lasts; it is the connection's. */
static void reply_learn_ssl(struct http_transfer *x)
{
	const struct curl_tlssessioninfo *info = NULL;

	x->ssl = NULL;
	if (x->tls && curl_easy_getinfo(x->easy, CURLINFO_TLS_SSL_PTR, &info) == CURLE_OK && info)
		x->ssl = info->internals;
}

/* "HTTP/1.1 200 OK": a new head; those of 1xx are dropped. */
static bool reply_status(struct http_transfer *x, const char *line, size_t n)
{
	const char *sp = memchr(line, ' ', n);

	reply_learn_ssl(x);
	http_fields_free(&x->reply);
	x->status = 0;
	for (size_t i = 1; sp && i <= 3 && sp + i < line + n; i++) {
		if (sp[i] < '0' || sp[i] > '9')
			return false;
		x->status = x->status * 10 + (unsigned int)(sp[i] - '0');
	}
	return x->status >= 100 && x->status <= 999;
}

/* What a body would have: libcurl says 0 for a 304, which has none. */
static int64_t reply_length(const struct http_transfer *x)
{
	const char *text = http_fields_get(&x->reply, "Content-Length");
	char *end;
	long long size = text ? strtoll(text, &end, 10) : -1;

	return size < 0 || *end ? -1 : size;
}

/* Two lengths that differ: who reads which? */
static bool reply_has_two_lengths(const struct http_transfer *x)
{
	const char *first = http_fields_get(&x->reply, "Content-Length");

	for (size_t i = 0; i < x->reply.n; i++)
		if (strcasecmp(x->reply.v[i].name, "Content-Length") == 0 &&
		    strcmp(x->reply.v[i].value, first) != 0)
			return true;
	return false;
}

static bool reply_end(struct http_transfer *x)
{
	curl_off_t size = -1;

	if (x->status == 101 || reply_has_two_lengths(x))
		return false;
	if (x->status < 200)
		return true;
	if (curl_easy_getinfo(x->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &size) != CURLE_OK)
		size = -1;
	if (http_fields_get(&x->reply, "Transfer-Encoding"))
		size = -1;
	x->size = x->status == 304 ? reply_length(x) : size;
	http_fields_end_hop(&x->reply, false);
	/* libcurl stops sending then. */
	if (x->status >= 300)
		x->up_over = true;
	x->head = true;
	x->look(x->arg);
	return true;
}

bool transfer_reply_line(struct http_transfer *x, const char *line, size_t n)
{
	const char *colon;
	int rc;

	while (n && (line[n - 1] == '\n' || line[n - 1] == '\r'))
		n--;
	if (n >= 5 && memcmp(line, "HTTP/", 5) == 0)
		return reply_status(x, line, n);
	if (n == 0)
		return reply_end(x);
	colon = memchr(line, ':', n);
	if (!colon)
		return true; /* part of a folded line, which is nobody's any more */
	if (x->reply.n >= TRANSFER_FIELDS_MAX)
		return false;
	rc = http_fields_add(&x->reply, line, (size_t)(colon - line), colon + 1,
			     n - (size_t)(colon - line) - 1);
	return rc != -ENOMEM; /* what is no header is left out */
}
