/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What answers in the daemon's place, as `podflare shell` reads it: the same
 * reply in whatever pieces it comes, within its bounds.
 */
#include "input.h"

#include "cli/http_reply.h"

#define BODY_MAX 200u

struct outcome {
	struct http_reply r;
	size_t took;
	int rc;
};

static void read_all(struct outcome *o, const uint8_t *data, size_t len, size_t piece)
{
	*o = (struct outcome){0};
	http_reply_init(&o->r, BODY_MAX);
	while (o->took < len && o->rc == 0 && !http_reply_done(&o->r)) {
		size_t n = len - o->took < piece ? len - o->took : piece;
		uint8_t *copy = malloc(n); /* so that a read beyond its end is seen */
		ssize_t took;

		memcpy(copy, data + o->took, n);
		took = http_reply_feed(&o->r, copy, n);
		MUST(took <= (ssize_t)n && took != 0);
		MUST(took < 0 || (size_t)took == n || http_reply_done(&o->r));
		if (took < 0)
			o->rc = (int)took;
		else
			o->took += (size_t)took;
		free(copy);
	}
	if (o->rc == 0)
		o->rc = http_reply_end(&o->r);
	MUST(o->r.body.cap <= BODY_MAX && o->r.head.cap <= HTTP_REPLY_HEAD_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	size_t piece = 1 + input_u8(&in) % 64;
	struct outcome whole, parts;
	const char *a, *b;

	read_all(&whole, in.p, in.left, in.left ? in.left : 1);
	read_all(&parts, in.p, in.left, piece);
	MUST(whole.rc == parts.rc);
	if (whole.rc == 0) {
		MUST(whole.took == parts.took && whole.r.status == parts.r.status);
		MUST(buf_len(&whole.r.body) == buf_len(&parts.r.body));
		MUST(!buf_len(&whole.r.body) ||
		     memcmp(buf_data(&whole.r.body), buf_data(&parts.r.body),
			    buf_len(&whole.r.body)) == 0);
		a = http_reply_header(&whole.r, "Upgrade");
		b = http_reply_header(&parts.r, "Upgrade");
		MUST(a ? b && strcmp(a, b) == 0 : !b);
	}
	http_reply_free(&whole.r);
	http_reply_free(&parts.r);
	return 0;
}
