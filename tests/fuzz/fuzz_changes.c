/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of changes of two guests, and their comparison. The input is cut in two
 * at its first 0xff; each half is fed in pieces, of one byte and as a whole, and
 * both ways must agree. Whatever is taken is compared both ways round: what is
 * added in one is removed in the other.
 */
#include "daemon/compare.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int feed(struct changes *c, const uint8_t *p, size_t len, size_t step)
{
	int rc = 0;

	changes_init(c);
	for (size_t i = 0; i < len && rc == 0; i += step)
		rc = changes_feed(c, p + i, len - i < step ? len - i : step);
	return rc == 0 ? changes_end(c) : rc;
}

static int read_list(struct changes *c, const uint8_t *p, size_t len)
{
	struct changes bytewise;
	int rc = feed(c, p, len, len ? len : 1);

	if (feed(&bytewise, p, len, 1) != rc || bytewise.n != c->n)
		abort();
	changes_free(&bytewise);
	return rc;
}

static size_t count(const struct comparison *c, enum compare_kind kind)
{
	size_t n = 0;

	for (size_t i = 0; i < c->n; i++)
		n += c->all[i].kind == kind;
	return n;
}

static int compare_all(struct comparison *out, const struct changes *a, const struct changes *b)
{
	int rc = compare_begin(out, a, b);

	for (rc = rc ? rc : 1; rc == 1;)
		rc = compare_step(out);
	return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *cut = size ? memchr(data, 0xff, size) : NULL;
	size_t first = cut ? (size_t)(cut - data) : size;
	struct changes a, b;
	struct comparison ab, ba;
	int ra = read_list(&a, data, first);
	int rb = read_list(&b, cut ? cut + 1 : data, cut ? size - first - 1 : 0);

	if (ra == 0 && rb == 0) {
		if (compare_all(&ab, &a, &b) < 0 || compare_all(&ba, &b, &a) < 0)
			abort();
		if (count(&ab, COMPARE_ADDED) != count(&ba, COMPARE_REMOVED) ||
		    count(&ab, COMPARE_CONTENT) != count(&ba, COMPARE_CONTENT) || ab.n != ba.n)
			abort();
		compare_free(&ab);
		compare_free(&ba);
	}
	changes_free(&a);
	changes_free(&b);
	return 0;
}
