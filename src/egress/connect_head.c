/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parser of a CONNECT head. It runs over the bytes that have come so far, and
 * refuses as early as it can: a bad byte is refused before the head is whole.
 * Nothing is allocated; every loop is bounded by CONNECT_HEAD_MAX.
 */
#define _GNU_SOURCE
#include "egress/connect_head.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

/* A piece of the head. */
struct span {
	const char *p;
	size_t len;
};

struct fields {
	struct span host, length;
	unsigned hosts, lengths, encodings, upgrades, expects;
};

static ssize_t refuse(struct connect_head *out, enum egress_reason reason, const char *why)
{
	out->reason = reason;
	out->why = why;
	return -EBADMSG;
}

static bool is_token(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool span_is(struct span s, const char *text)
{
	return s.len == strlen(text) && strncasecmp(s.p, text, s.len) == 0;
}

/*
 * Looks for the end of the head: its length, 0 when it has not come yet, or -EBADMSG for bytes
 * that no head has.
 */
static ssize_t head_length(const char *p, size_t len, struct connect_head *out)
{
	size_t line = 0; /* start of the line */

	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)p[i];

		if (i >= CONNECT_HEAD_MAX)
			return refuse(out, EGRESS_R_BAD_REQUEST, "the head is too long");
		if (c == '\r') {
			if (i + 1 < len && p[i + 1] != '\n')
				return refuse(out, EGRESS_R_BAD_REQUEST,
					      "the head has a CR without a LF");
		} else if (c == '\n') {
			if (i == 0 || p[i - 1] != '\r')
				return refuse(out, EGRESS_R_BAD_REQUEST,
					      "the head has a LF without a CR");
			if (i == line + 1 && line > 0)
				return (ssize_t)i + 1;
			line = i + 1;
		} else if ((c < ' ' && c != '\t') || c >= 0x7f) {
			return refuse(out, EGRESS_R_BAD_REQUEST,
				      "the head has control characters or bytes beyond ASCII");
		}
	}
	if (len >= CONNECT_HEAD_MAX)
		return refuse(out, EGRESS_R_BAD_REQUEST, "the head is too long");
	return 0;
}

/* host ":" port, without anything else. */
static bool parse_target(struct span t, struct connect_head *out)
{
	const char *colon = memrchr(t.p, ':', t.len);
	size_t host_len = colon ? (size_t)(colon - t.p) : 0, digits;
	uint32_t port = 0;

	if (!colon || host_len == 0 || host_len >= sizeof(out->host))
		return false;
	digits = t.len - host_len - 1;
	if (digits < 1 || digits > 5 || colon[1] == '0')
		return false;
	for (size_t i = 1; i <= digits; i++) {
		if (colon[i] < '0' || colon[i] > '9')
			return false;
		port = port * 10 + (uint32_t)(colon[i] - '0');
	}
	if (port > 65535)
		return false;
	for (size_t i = 0; i < host_len; i++)
		if (strchr("@/?#\\\t ", t.p[i]))
			return false;
	/* A colon in the host is an address, which has brackets around it. */
	if (memchr(t.p, ':', host_len) && (t.p[0] != '[' || t.p[host_len - 1] != ']'))
		return false;
	memcpy(out->host, t.p, host_len);
	out->host[host_len] = '\0';
	out->port = (uint16_t)port;
	return true;
}

static ssize_t parse_request_line(struct span line, struct connect_head *out)
{
	struct span target = {line.p + CONNECT_METHOD_LEN, 0};
	const char *sp;

	if (line.len <= CONNECT_METHOD_LEN ||
	    memcmp(line.p, CONNECT_METHOD, CONNECT_METHOD_LEN) != 0)
		return refuse(out, EGRESS_R_BAD_REQUEST, "the request is not a CONNECT");
	sp = memchr(target.p, ' ', line.len - CONNECT_METHOD_LEN);
	if (!sp)
		return refuse(out, EGRESS_R_BAD_REQUEST, "the request line has no HTTP version");
	target.len = (size_t)(sp - target.p);
	line.len -= (size_t)(sp + 1 - line.p);
	line.p = sp + 1;
	if (line.len != 8 || memcmp(line.p, "HTTP/1.", 7) != 0 ||
	    (line.p[7] != '0' && line.p[7] != '1'))
		return refuse(out, EGRESS_R_BAD_REQUEST,
			      "the request line does not end with HTTP/1.0 or HTTP/1.1");
	if (!parse_target(target, out))
		return refuse(out, EGRESS_R_BAD_REQUEST, "the target of CONNECT is not HOST:PORT");
	return 0;
}

static ssize_t parse_field(struct span line, struct fields *f, struct connect_head *out)
{
	struct span name = {line.p, 0}, value;

	while (name.len < line.len && is_token(line.p[name.len]))
		name.len++;
	/* A line that begins with a space is a folded one: it has an empty name. */
	if (name.len == 0 || name.len == line.len || line.p[name.len] != ':')
		return refuse(out, EGRESS_R_BAD_REQUEST, "the head has a malformed or folded line");
	value = (struct span){line.p + name.len + 1, line.len - name.len - 1};
	while (value.len && (value.p[0] == ' ' || value.p[0] == '\t'))
		value = (struct span){value.p + 1, value.len - 1};
	while (value.len && (value.p[value.len - 1] == ' ' || value.p[value.len - 1] == '\t'))
		value.len--;
	if (span_is(name, "Host")) {
		f->hosts++;
		f->host = value;
	} else if (span_is(name, "Content-Length")) {
		f->lengths++;
		f->length = value;
	} else if (span_is(name, "Transfer-Encoding")) {
		f->encodings++;
	} else if (span_is(name, "Upgrade")) {
		f->upgrades++;
	} else if (span_is(name, "Expect")) {
		f->expects++;
	}
	return 0;
}

/* Host names the target; without a port, as some clients write it, the target's name. */
static bool host_matches(struct span host, struct span target, const struct connect_head *out)
{
	size_t name = strlen(out->host);

	if (host.len != target.len && host.len != name)
		return false;
	return strncasecmp(host.p, target.p, host.len) == 0;
}

static ssize_t check_fields(const struct fields *f, struct span target, struct connect_head *out)
{
	if (f->hosts > 1)
		return refuse(out, EGRESS_R_HOST_MISMATCH, "there are two Host fields");
	if (f->hosts && !host_matches(f->host, target, out))
		return refuse(out, EGRESS_R_HOST_MISMATCH,
			      "the Host field is not the target of CONNECT");
	if (f->encodings || f->lengths > 1 || (f->lengths && !span_is(f->length, "0")))
		return refuse(out, EGRESS_R_BAD_REQUEST, "a CONNECT has no body");
	if (f->upgrades)
		return refuse(out, EGRESS_R_UPGRADE, "a CONNECT has no Upgrade");
	if (f->expects)
		return refuse(out, EGRESS_R_BAD_REQUEST, "a CONNECT has no Expect");
	return 0;
}

ssize_t connect_head_parse(const char *p, size_t len, struct connect_head *out)
{
	struct fields f = {0};
	struct span target = {0};
	ssize_t total, rc = 0;
	unsigned lines = 0;

	*out = (struct connect_head){.host = ""};
	total = head_length(p, len, out);
	if (total <= 0)
		return total;
	/* Lines end at "\r\n"; the last one is empty. */
	for (size_t at = 0; at + 2 < (size_t)total && rc == 0; lines++) {
		const char *end = memchr(p + at, '\r', (size_t)total - at);
		struct span line = {p + at, (size_t)(end - (p + at))};

		if (lines > CONNECT_FIELDS_MAX)
			return refuse(out, EGRESS_R_BAD_REQUEST, "the head has too many fields");
		if (lines == 0) {
			rc = parse_request_line(line, out);
			target.p = p + CONNECT_METHOD_LEN;
			while (rc == 0 && target.p[target.len] != ' ')
				target.len++;
		} else {
			rc = parse_field(line, &f, out);
		}
		at += line.len + 2;
	}
	if (rc == 0)
		rc = check_fields(&f, target, out);
	return rc < 0 ? rc : total;
}
