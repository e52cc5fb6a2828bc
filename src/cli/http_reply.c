/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reply parser: a state for each part of the framing. No state beside the
 * object.
 */
#include "cli/http_reply.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

void http_reply_init(struct http_reply *r, size_t body_max)
{
	*r = (struct http_reply){.state = HTTP_REPLY_HEAD};
	buf_init(&r->head, HTTP_REPLY_HEAD_MAX);
	buf_init(&r->body, body_max);
}

void http_reply_free(struct http_reply *r)
{
	buf_free(&r->head);
	buf_free(&r->body);
}

const char *http_reply_header(const struct http_reply *r, const char *name)
{
	const char *line = (const char *)buf_data(&r->head), *end;
	size_t len = strlen(name);

	if (!line || !http_reply_has_head(r))
		return NULL;
	end = line + buf_len(&r->head);
	for (line += strlen(line) + 1; line < end; line += strlen(line) + 1) {
		if (strncasecmp(line, name, len) != 0 || line[len] != ':')
			continue;
		line += len + 1;
		return line + strspn(line, " \t");
	}
	return NULL;
}

/* Digits of a base, nothing else. */
static int parse_number(const char *text, int base, uint64_t *out)
{
	char *end;

	if (!(base == 16 ? isxdigit((unsigned char)*text) : isdigit((unsigned char)*text)))
		return -EPROTO;
	errno = 0;
	*out = strtoull(text, &end, base);
	end += strspn(end, " \t");
	/* A chunk may have extensions behind a semicolon. */
	return errno == 0 && (*end == '\0' || (base == 16 && *end == ';')) ? 0 : -EPROTO;
}

/* The head is whole, its lines end with NUL: status and framing. */
static int finish_head(struct http_reply *r)
{
	const char *line = (const char *)buf_data(&r->head), *v;
	uint64_t status;
	int rc;

	if (strncmp(line, "HTTP/1.", 7) != 0 || strlen(line) < 12 || line[8] != ' ')
		return -EPROTO;
	r->status = 0;
	for (int i = 9; i < 12; i++) {
		if (!isdigit((unsigned char)line[i]))
			return -EPROTO;
		r->status = r->status * 10 + line[i] - '0';
	}
	status = (uint64_t)r->status;
	if (status >= 100 && status < 200 && status != 101) { /* another head follows */
		buf_consume(&r->head, buf_len(&r->head));
		return 0;
	}
	r->state = HTTP_REPLY_DATA;
	v = http_reply_header(r, "Transfer-Encoding");
	r->chunked = v && strcasecmp(v, "chunked") == 0;
	if (v && !r->chunked)
		return -EPROTO;
	v = http_reply_header(r, "Content-Length");
	if (status == 101 || status == 204 || status == 304) {
		r->state = HTTP_REPLY_DONE;
	} else if (r->chunked) {
		r->state = HTTP_REPLY_SIZE;
	} else if (v) {
		rc = parse_number(v, 10, &r->left);
		if (rc < 0)
			return rc;
		r->state = r->left ? HTTP_REPLY_DATA : HTTP_REPLY_DONE;
	} else {
		r->state = HTTP_REPLY_TO_END;
	}
	return 0;
}

static int feed_head(struct http_reply *r, char c)
{
	size_t len = buf_len(&r->head);
	const char *text = (const char *)buf_data(&r->head);
	int rc;

	if (c == '\0')
		return -EPROTO;
	if (c == '\n') { /* the line ends here, with or without a CR before */
		bool cr = len && text[len - 1] == '\r';

		if (cr)
			r->head.end--;
		len -= cr;
		if (len == 0)
			return -EPROTO;
		if (text[len - 1] == '\0')
			return finish_head(r);
		c = '\0';
	}
	rc = buf_append(&r->head, &c, 1);
	return rc == -ENOBUFS ? -EMSGSIZE : rc;
}

/* A line of the framing is whole. */
static int finish_line(struct http_reply *r)
{
	int rc;

	r->line[r->line_len] = '\0';
	if (r->line_len && r->line[r->line_len - 1] == '\r')
		r->line[--r->line_len] = '\0';
	switch (r->state) {
	case HTTP_REPLY_SIZE:
		rc = parse_number(r->line, 16, &r->left);
		if (rc < 0)
			return rc;
		r->state = r->left ? HTTP_REPLY_DATA : HTTP_REPLY_TRAILER;
		break;
	case HTTP_REPLY_CRLF:
		if (r->line_len)
			return -EPROTO;
		r->state = HTTP_REPLY_SIZE;
		break;
	default:
		if (r->line_len == 0)
			r->state = HTTP_REPLY_DONE;
	}
	r->line_len = 0;
	return 0;
}

static int feed_line(struct http_reply *r, char c)
{
	if (c == '\n')
		return finish_line(r);
	if (r->line_len + 1 < sizeof(r->line))
		r->line[r->line_len++] = c;
	else if (r->state != HTTP_REPLY_TRAILER)
		return -EPROTO;
	return 0;
}

static ssize_t feed_data(struct http_reply *r, const uint8_t *p, size_t len)
{
	bool all = r->state == HTTP_REPLY_TO_END;
	size_t n = all || len < r->left ? len : (size_t)r->left;
	int rc = buf_append(&r->body, p, n);

	if (rc < 0)
		return rc == -ENOBUFS ? -EMSGSIZE : rc;
	if (!all)
		r->left -= n;
	if (!all && r->left == 0)
		r->state = r->chunked ? HTTP_REPLY_CRLF : HTTP_REPLY_DONE;
	return (ssize_t)n;
}

ssize_t http_reply_feed(struct http_reply *r, const void *data, size_t len)
{
	const uint8_t *p = data;
	size_t at = 0;

	while (at < len && r->state != HTTP_REPLY_DONE) {
		ssize_t n = 1;

		if (r->state == HTTP_REPLY_DATA || r->state == HTTP_REPLY_TO_END)
			n = feed_data(r, p + at, len - at);
		else if (r->state == HTTP_REPLY_HEAD)
			n = feed_head(r, (char)p[at]) ?: n;
		else
			n = feed_line(r, (char)p[at]) ?: n;
		if (n < 0)
			return n;
		at += (size_t)n;
	}
	return (ssize_t)at;
}

int http_reply_end(struct http_reply *r)
{
	if (r->state == HTTP_REPLY_TO_END)
		r->state = HTTP_REPLY_DONE;
	return http_reply_done(r) ? 0 : -ECONNRESET;
}
