/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's JSON. Whatever the library that we use elsewhere takes as an object
 * the scanner must take as well, unless a member is there twice or it is nested
 * deeper; what the scanner takes must be values again, on their own and on one
 * line, and its texts valid UTF-8. In pieces nothing else may come of it than of
 * the whole: of the text, of a value that is copied, of a text that is unescaped.
 */
#include "input.h"

#include "daemon/json_feed.h"
#include "lib/utf8.h"

#include <errno.h>
#include <jansson.h>

static const char *const names[] = {"type", "data", "text"};

/* Copied in the smallest pieces that there are. */
static void check_copy(struct json_span s, const uint8_t *whole, size_t len)
{
	struct json_copy c;
	size_t n = 0;

	json_copy_init(&c, s);
	while (c.left.len) {
		uint8_t piece[3];
		size_t k = json_copy_some(&c, piece, sizeof(piece));

		MUST(k >= 1 && k <= sizeof(piece) && k <= len - n);
		MUST(memcmp(whole + n, piece, k) == 0);
		n += k;
	}
	MUST(n == len);
}

static void check_text(struct json_span s)
{
	struct json_span left = json_span_inside(s), again = left;
	uint8_t *text = malloc(left.len + 4);
	size_t len = json_span_unescape(&left, text, left.len + 4), n = 0;

	MUST(left.len == 0 && len <= s.len - 2 && utf8_valid(text, len));
	while (again.len) {
		uint8_t piece[4];
		size_t k = json_span_unescape(&again, piece, sizeof(piece));

		MUST(k >= 1 && k <= len - n && memcmp(text + n, piece, k) == 0);
		n += k;
	}
	MUST(n == len);
	free(text);
}

/* A value that was found is one by itself: as the member of another object. */
static void check_value(struct json_span s)
{
	static const char *const inner[] = {"data"};
	struct json_span again;
	struct buf out;

	size_t more = 2 * (s.len / JSON_SPAN_NUMBER);

	buf_init(&out, s.len + more + 16);
	MUST(buf_append(&out, "{\"data\":", 8) == 0 && json_span_append(&out, s) == 0);
	check_copy(s, buf_data(&out) + 8, buf_len(&out) - 8);
	MUST(buf_append(&out, "}", 1) == 0);
	MUST(!memchr(buf_data(&out), '\n', buf_len(&out)));
	MUST(json_span_members((struct json_span){buf_data(&out), buf_len(&out)}, inner, &again,
			       1) == 0);
	MUST(again.len >= s.len && again.len <= s.len + more);
	buf_free(&out);
	if (json_span_is(s, '"'))
		check_text(s);
}

/* Byte by byte, and as it grows it moves; "text" of "data" is found as by itself. */
static void check_feed(const uint8_t *data, size_t size, int rc, const struct json_span *v)
{
	static const char *const inner[] = {"text"};
	uint8_t *copy = malloc(size ? size : 1);
	struct json_span got[3], text, wanted;
	struct json_feed f;
	bool twice;

	json_feed_init(&f, names, 3, 1, "text");
	for (size_t i = 0; i < size; i++) {
		copy[i] = data[i];
		json_feed_more(&f, copy, i + 1);
	}
	MUST(json_feed_end(&f, copy, got, &text, &twice) == rc);
	for (size_t i = 0; i < 3 && rc == 0; i++)
		MUST(v[i].p ? got[i].p - copy == v[i].p - data && got[i].len == v[i].len
			    : !got[i].p);
	if (rc == 0 && json_span_is(got[1], '{')) {
		MUST(json_span_members(got[1], inner, &wanted, 1) == (twice ? -EPROTO : 0));
		if (!twice)
			MUST(text.p == wanted.p && text.len == wanted.len);
	} else if (rc == 0) {
		MUST(!text.p && !twice);
	}
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct json_span v[3];
	uint8_t *copy = malloc(size ? size : 1); /* so that a read beyond its end is seen */
	int rc;

	memcpy(copy, data, size);
	rc = json_span_members((struct json_span){copy, size}, names, v, 3);
	if (rc < 0) {
		json_t *o = json_loadb((const char *)copy, size, JSON_REJECT_DUPLICATES, NULL);

		/* The library takes a NUL behind a number for a blank. */
		MUST(!json_is_object(o) || size > JSON_SPAN_DEPTH || memchr(copy, 0, size));
		json_decref(o);
	}
	check_feed(copy, size, rc, v);
	for (size_t i = 0; i < 3 && rc == 0; i++)
		if (v[i].p)
			check_value(v[i]);
	free(copy);
	return 0;
}
