/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head of a guest's request, and its body in chunks: the same verdict in whatever pieces they
 * come, and what passes has the one form that is passed on: a host of name bytes that Host says as
 * well, a path without a byte that could end a line, and fields that a header can be written from.
 */
#include "input.h"

#include "egress/http/chunks.h"
#include "egress/http/fields.h"
#include "egress/http/head.h"
#include "egress/http/target.h"

#include <strings.h>

static int look(struct http_head *h, const uint8_t *data, size_t len, size_t piece)
{
	int rc = 0;

	http_head_init(h);
	for (size_t n = 0; n < len && rc == 0;) {
		char *copy;

		n = len - n < piece ? len : n + piece;
		copy = malloc(n); /* so that a read beyond its end is seen */
		memcpy(copy, data, n);
		rc = http_head_look(h, copy, n);
		free(copy);
	}
	MUST(rc != 1 || h->len <= len);
	MUST(rc >= 0 || h->why);
	return rc;
}

/* The next line of a head that passed, its end cut off; NULL behind the last. */
static char *next_line(char **p)
{
	char *line = *p, *end = strstr(line, "\r\n");

	MUST(end);
	*end = '\0';
	*p = end + 2;
	return end == line ? NULL : line;
}

static void check_path(const struct http_target *t)
{
	MUST(t->path[0] == '/');
	MUST(t->path_len <= strlen(t->path));
	for (const char *p = t->path; *p; p++)
		MUST((unsigned char)*p > ' ' && *p != 0x7f && *p != '#');
}

static void check_target(const char *method, const char *uri, const char *host,
			 const struct http_origin *origin)
{
	struct http_refusal why = {0};
	struct http_target t;

	if (http_target_parse(&t, method, uri, host, origin, &why) < 0) {
		MUST(why.reason != EGRESS_R_NONE && why.detail);
		MUST(strlen(t.host) <= HTTP_HOST_MAX);
		return;
	}
	MUST(t.port && t.host[0]);
	MUST(strcasecmp(method, "TRACE") != 0 && strcasecmp(method, "CONNECT") != 0);
	for (const char *p = t.host; *p; p++)
		MUST(!strchr(" @:/\\?#%[]", *p) && (unsigned char)*p > ' ');
	/* What counts is what Host says, too. */
	MUST(!host || strncasecmp(host, t.host, strlen(t.host)) == 0);
	MUST(!origin || (strcmp(t.host, origin->host) == 0 && t.port == origin->port));
	check_path(&t);
}

static void check_fields(struct http_fields *f)
{
	static const char *const gone[] = {
		"Connection",    "Transfer-Encoding", "Upgrade", "Host",
		"Proxy-Nothing", "Content-Length",    "TE",      "Expect"};
	json_t *inject = json_pack("{s:s}", "Authorization", "secret");

	http_fields_upgrade(f);
	http_fields_end_hop(f, true);
	for (size_t i = 0; i < ARRAY_SIZE(gone); i++)
		MUST(!http_fields_get(f, gone[i]));
	MUST(http_fields_inject(f, inject) == 0);
	MUST(strcmp(http_fields_get(f, "authorization"), "secret") == 0);
	for (size_t i = 0; i < f->n; i++)
		MUST(!strpbrk(f->v[i].name, "\r\n :") && !strpbrk(f->v[i].value, "\r\n"));
	json_decref(inject);
}

static void check_good(const struct http_head *h, const uint8_t *data)
{
	static const struct http_origin inside = {"https", "example.com", 443};
	char *text = malloc(h->len + 1), *p = text, *line, *method, *uri;
	struct http_fields f = {0};

	memcpy(text, data, h->len);
	http_head_tidy(h, text);
	text[h->len] = '\0';
	MUST(strlen(text) == h->len);
	while (!(method = next_line(&p)))
		; /* empty lines before it */
	uri = strchr(method, ' ');
	*uri++ = '\0';
	*strchr(uri, ' ') = '\0';
	while ((line = next_line(&p))) {
		char *colon = strchr(line, ':'), last = line[strlen(line) - 1];

		/* What the library takes for the value is the value. */
		MUST((last != ' ' && last != '\t') ||
		     strspn(colon + 1, " \t") == strlen(colon + 1));
		MUST(http_fields_add(&f, line, (size_t)(colon - line), colon + 1,
				     strlen(colon + 1)) == 0);
	}
	MUST(f.n <= HTTP_FIELDS_MAX && *p == '\0');
	check_target(method, uri, http_fields_get(&f, "Host"), NULL);
	check_target(method, uri, http_fields_get(&f, "Host"), &inside);
	MUST((h->framing == HTTP_CHUNKED) == (http_fields_get(&f, "Transfer-Encoding") != NULL));
	MUST(h->framing != HTTP_LENGTH || http_fields_get(&f, "Content-Length"));
	check_fields(&f);
	http_fields_free(&f);
	free(text);
}

/* What is behind a head that says so. */
static void check_chunks(const uint8_t *data, size_t len, size_t piece)
{
	struct http_chunks whole, parts;
	int rc, step = 0;

	http_chunks_init(&whole);
	http_chunks_init(&parts);
	rc = http_chunks_look(&whole, (const char *)data, len);
	for (size_t i = 0, n; i < len && step == 0; i += n) {
		char *copy;

		n = len - i < piece ? len - i : piece;
		copy = malloc(n);
		memcpy(copy, data + i, n);
		step = http_chunks_look(&parts, copy, n);
		free(copy);
	}
	MUST(rc == step && whole.at == parts.at && whole.why == parts.why);
	MUST(rc < 0 || whole.left == parts.left);
	MUST(whole.line <= HTTP_TRAILERS_MAX);
	MUST(whole.at == HTTP_CHUNKS_TRAILERS || whole.line <= HTTP_CHUNK_LINE + 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	size_t piece = 1 + input_u8(&in) % 64;
	struct http_head whole, parts;
	int rc = look(&whole, in.p, in.left, in.left ? in.left : 1);

	MUST(rc == look(&parts, in.p, in.left, piece));
	MUST(rc >= 0 || strcmp(whole.why, parts.why) == 0);
	if (rc == 1) {
		MUST(whole.len == parts.len && whole.framing == parts.framing);
		MUST(whole.length == parts.length && whole.http10 == parts.http10);
		check_good(&whole, in.p);
		check_chunks(in.p + whole.len, in.left - whole.len, piece);
	}
	return 0;
}
