/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest sends first in a tunnel, in whatever pieces, and what a server
 * answers: the verdict does not depend on the pieces, and stays.
 */
#include "input.h"

#include "egress/hello.h"

/* Client's and server's bytes as the input tells; piece 0: all at once. */
static void read_all(struct hello *h, struct input client, struct input server, size_t piece,
		     size_t server_after)
{
	size_t fed = 0;

	hello_init(h);
	while (client.left) {
		size_t n = piece && piece < client.left ? piece : client.left;
		uint8_t *copy;
		enum hello_verdict before = h->verdict, v;
		bool done = h->done;

		/* The server speaks when it has got that much. */
		if (fed < server_after && fed + n > server_after)
			n = server_after - fed;
		if (fed == server_after && server.left) {
			hello_server(h, server.p, server.left);
			server.left = 0;
		}
		copy = malloc(n); /* so that a read beyond its end is seen */
		memcpy(copy, client.p, n);
		v = hello_feed(h, copy, n);
		free(copy);
		MUST(v == h->verdict);
		MUST(before == HELLO_MORE || v == before ||
		     (before == HELLO_NAME && v == HELLO_SECOND));
		MUST(!done || (v == before && h->done));
		MUST(v != HELLO_SECOND || h->done);
		MUST(h->message.cap <= HELLO_MAX);
		client.p += n;
		client.left -= n;
		fed += n;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	size_t piece = 1 + input_u8(&in) % 64, after = input_int(&in, 2);
	size_t server_len = input_u8(&in) % 64;
	struct input server = {in.p, server_len < in.left ? server_len : in.left};
	struct hello whole, parts;

	in.p += server.left;
	in.left -= server.left;
	read_all(&whole, in, server, 0, after);
	read_all(&parts, in, server, piece, after);
	MUST(whole.verdict == parts.verdict && whole.done == parts.done);
	if (whole.verdict == HELLO_NAME || whole.verdict == HELLO_SECOND) {
		MUST(strcmp(whole.name, parts.name) == 0);
		MUST(whole.name[0] && strlen(whole.name) <= EGRESS_HOST_MAX);
		for (const char *p = whole.name; *p; p++)
			MUST(*p > ' ' && *p < 0x7f && !(*p >= 'A' && *p <= 'Z'));
	}
	if (whole.verdict == HELLO_NOT_TLS || whole.verdict == HELLO_SECOND)
		MUST(whole.why && strcmp(whole.why, parts.why) == 0);
	hello_free(&whole);
	hello_free(&parts);
	return 0;
}
