/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's list of files. It is fed byte by byte and in larger pieces, and both
 * ways must agree; what is taken must come out as one JSON text with as many
 * entries as there were lines.
 */
#include "input.h"

#include "daemon/file_entry.h"

#define PIECE 65536u

/* Feeds it in pieces of step bytes; what comes out is collected in all. */
static int feed(const uint8_t *data, size_t size, size_t step, struct buf *all, size_t *entries)
{
	struct file_list l;
	int rc = 0;

	file_list_init(&l);
	for (size_t i = 0; i < size && rc == 0; i += step) {
		rc = file_list_feed(&l, data + i, size - i < step ? size - i : step);
		MUST(buf_append(all, buf_data(&l.out), buf_len(&l.out)) == 0);
		buf_consume(&l.out, buf_len(&l.out));
	}
	if (rc == 0)
		rc = file_list_end(&l);
	MUST(buf_append(all, buf_data(&l.out), buf_len(&l.out)) == 0);
	*entries = l.n;
	file_list_free(&l);
	return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct buf whole, bytes;
	size_t n, m;
	int rc;

	buf_init(&whole, 1u << 24);
	buf_init(&bytes, 1u << 24);
	rc = feed(data, size, PIECE, &whole, &n);
	MUST(feed(data, size, 1, &bytes, &m) == rc && n == m);
	if (rc == 0) {
		json_t *o = json_loadb((const char *)buf_data(&whole), buf_len(&whole), 0, NULL);

		MUST(json_array_size(json_object_get(o, "entries")) == n);
		MUST(buf_len(&whole) == buf_len(&bytes));
		json_decref(o);
	}
	buf_free(&whole);
	buf_free(&bytes);
	return 0;
}
