/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Line by line, each byte once. A line is checked as soon as it is whole; bytes
 * that may be in no line are refused as they come.
 * Thread: any. fork: no state.
 */
#include "egress/http/head.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

static int head_bad(struct http_head *h, const char *why)
{
	h->why = why;
	return -EBADMSG;
}

static bool is_token(unsigned char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
	       (c && strchr("!#$%&'*+-.^_`|~", c));
}

static size_t token_len(const char *p, size_t n)
{
	size_t i = 0;

	while (i < n && is_token((unsigned char)p[i]))
		i++;
	return i;
}

static bool same(const char *p, size_t n, const char *word)
{
	return strlen(word) == n && strncasecmp(p, word, n) == 0;
}

/* method SP target SP version, nothing else between them. */
static int request_line(struct http_head *h, const char *p, size_t n)
{
	size_t m = token_len(p, n), t;
	const char *v;

	if (m == 0 || m == n || p[m] != ' ')
		return head_bad(h, "the first line is not that of an HTTP request");
	if (m > HTTP_METHOD_MAX)
		return head_bad(h, "the method is too long");
	p += m + 1;
	n -= m + 1;
	for (t = 0; t < n && (unsigned char)p[t] > ' '; t++)
		if (p[t] == '#')
			return head_bad(h, "the URL has a fragment (#)");
	v = p + t + 1;
	if (t == 0 || t == n || p[t] != ' ')
		return head_bad(h, "the first line is not that of an HTTP request");
	h->target = h->line + m + 1;
	h->target_len = t;
	if (n - t - 1 == 8 && memcmp(v, "HTTP/1.0", 8) == 0)
		h->http10 = true;
	else if (n - t - 1 != 8 || memcmp(v, "HTTP/1.1", 8) != 0)
		return head_bad(h, "the version is neither HTTP/1.1 nor HTTP/1.0");
	return 0;
}

static int content_length(struct http_head *h, const char *v, size_t n)
{
	if (h->has_length)
		return head_bad(h, "there is more than one Content-Length");
	h->has_length = true;
	if (n == 0 || n > HTTP_LENGTH_DIGS)
		return head_bad(h, "Content-Length is not a length");
	for (size_t i = 0; i < n; i++) {
		if (v[i] < '0' || v[i] > '9')
			return head_bad(h, "Content-Length is not a length");
		h->length = h->length * 10 + (uint64_t)(v[i] - '0');
	}
	return 0;
}

static int cookies(struct http_head *h, const char *v, size_t n)
{
	h->cookies += n > 0;
	for (size_t i = 0; i < n; i++)
		h->cookies += v[i] == ';' || v[i] == ',';
	return h->cookies > HTTP_COOKIES_MAX ? head_bad(h, "there are too many cookies") : 0;
}

static int header_line(struct http_head *h, const char *p, size_t n)
{
	size_t len = token_len(p, n);
	const char *v = p + len + 1;
	size_t vn;

	if (*p == ' ' || *p == '\t')
		return head_bad(h, "a header is folded over two lines");
	if (len == 0 || len == n || p[len] != ':')
		return head_bad(h, "a header line has no name, or not a colon right behind it");
	if (++h->fields > HTTP_FIELDS_MAX)
		return head_bad(h, "there are too many headers");
	vn = n - len - 1;
	while (vn && (*v == ' ' || *v == '\t'))
		v++, vn--;
	while (vn && (v[vn - 1] == ' ' || v[vn - 1] == '\t'))
		vn--;
	if (same(p, len, "content-length"))
		return content_length(h, v, vn);
	if (same(p, len, "cookie"))
		return cookies(h, v, vn);
	if (same(p, len, "transfer-encoding")) {
		if (h->has_encoding)
			return head_bad(h, "there is more than one Transfer-Encoding");
		h->has_encoding = true;
		if (!same(v, vn, "chunked"))
			return head_bad(h, "Transfer-Encoding is not chunked");
	}
	if (same(p, len, "host")) {
		if (h->host)
			return head_bad(h, "there is more than one Host");
		h->host = true;
	}
	if (same(p, len, "expect") && !same(v, vn, "100-continue"))
		return head_bad(h, "Expect is not 100-continue");
	return 0;
}

static int head_end(struct http_head *h, size_t len)
{
	if (h->has_encoding && h->has_length)
		return head_bad(h, "there are both Content-Length and Transfer-Encoding");
	if (h->has_encoding && h->http10)
		return head_bad(h, "Transfer-Encoding is not of HTTP/1.0");
	if (!h->host && !h->http10)
		return head_bad(h, "there is no Host");
	if (h->has_encoding)
		h->framing = HTTP_CHUNKED;
	else if (h->length)
		h->framing = HTTP_LENGTH;
	h->len = len;
	return 1;
}

/* A line of n bytes without its end; next: where the following one begins. */
static int head_line(struct http_head *h, const char *p, size_t n, size_t next)
{
	if (h->begun)
		return n ? header_line(h, p, n) : head_end(h, next);
	if (n) {
		h->begun = true;
		return request_line(h, p, n);
	}
	/* Old clients write a line end behind a body. */
	return ++h->blank > 2 ? head_bad(h, "there are empty lines before the request") : 0;
}

static int head_byte(struct http_head *h, unsigned char c, bool after_cr)
{
	if (after_cr != (c == '\n'))
		return head_bad(h, "a line does not end with CR and LF");
	if (c == 0)
		return head_bad(h, "there is a NUL byte");
	if ((c < ' ' && c != '\t' && c != '\r' && c != '\n') || c == 0x7f)
		return head_bad(h, "there is a control character");
	return 0;
}

int http_head_look(struct http_head *h, const char *p, size_t n)
{
	int rc;

	for (; h->scan < n; h->scan++) {
		size_t i = h->scan;

		if (i >= HTTP_HEAD_MAX)
			return head_bad(h, "the head of the request is too long");
		rc = head_byte(h, (unsigned char)p[i], i > h->line && p[i - 1] == '\r');
		if (rc < 0)
			return rc;
		if (p[i] != '\n')
			continue;
		rc = head_line(h, p + h->line, i - 1 - h->line, i + 1);
		if (rc)
			return rc;
		h->line = i + 1;
	}
	return 0;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

static void line_tidy(char *p, size_t n)
{
	char *colon = memchr(p, ':', n);
	char *v = colon ? colon + 1 : p + n;
	size_t len, behind = 0;

	while (v < p + n && is_blank(*v))
		v++;
	len = (size_t)(p + n - v);
	while (behind < len && is_blank(v[len - 1 - behind]))
		behind++;
	memmove(v + behind, v, len - behind);
	memset(v, ' ', behind);
}

void http_head_tidy(const struct http_head *h, char *p)
{
	char *end = p + h->len, *next;

	/* The first line ends with its version: nothing is moved in it. */
	for (; p < end; p = next + 2) {
		next = memchr(p, '\r', (size_t)(end - p));
		line_tidy(p, (size_t)(next - p));
	}
}
