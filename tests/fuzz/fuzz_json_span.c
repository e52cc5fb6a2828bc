/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's JSON. Whatever the library that we use elsewhere takes as an object
 * the scanner must take as well, unless a member is there twice or it is nested
 * deeper; what the scanner takes must be values again, on their own and on one
 * line, and its texts valid UTF-8.
 */
#include "input.h"

#include "daemon/json_span.h"
#include "lib/utf8.h"

#include <jansson.h>

static const char *const names[] = {"type", "data", "text"};

/* A value that was found is one by itself: as the member of another object. */
static void check_value(struct json_span s)
{
	static const char *const inner[] = {"data"};
	struct json_span again;
	struct buf out;
	uint8_t *text;
	size_t len = 0;

	size_t more = 2 * (s.len / JSON_SPAN_NUMBER);

	buf_init(&out, s.len + more + 16);
	MUST(buf_append(&out, "{\"data\":", 8) == 0 && json_span_append(&out, s) == 0 &&
	     buf_append(&out, "}", 1) == 0);
	MUST(!memchr(buf_data(&out), '\n', buf_len(&out)));
	MUST(json_span_members((struct json_span){buf_data(&out), buf_len(&out)}, inner, &again,
			       1) == 0);
	MUST(again.len >= s.len && again.len <= s.len + more);
	buf_free(&out);
	if (!json_span_is(s, '"'))
		return;
	text = json_span_text(s, &len);
	MUST(text && len <= s.len - 2 && utf8_valid(text, len));
	free(text);
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
	for (size_t i = 0; i < 3 && rc == 0; i++)
		if (v[i].p)
			check_value(v[i]);
	free(copy);
	return 0;
}
