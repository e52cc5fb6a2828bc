/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A SOCKS5 client: what is taken is a whole message, a part of it is never
 * taken for one, and nothing beyond the bytes that are there is read.
 */
#include "input.h"

#include "egress/socks.h"

static ssize_t parse(const uint8_t *data, size_t len, bool greeting, struct socks_request *r)
{
	uint8_t *copy = malloc(len ? len : 1); /* so that a read beyond its end is seen */
	ssize_t n;

	if (len)
		memcpy(copy, data, len);
	n = greeting ? socks_greeting(copy, len) : socks_request(copy, len, r);
	free(copy);
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	for (int greeting = 0; greeting < 2; greeting++) {
		struct socks_request r = {0}, again;
		size_t max = greeting ? SOCKS_GREETING_MAX : SOCKS_REQUEST_MAX;
		ssize_t n = parse(data, size, greeting, &r);

		MUST(n <= (ssize_t)size && n <= (ssize_t)max);
		MUST(n != 0 || size < max);
		if (n <= 0)
			continue;
		MUST(data[0] == SOCKS_VERSION);
		for (size_t i = 0; i < (size_t)n; i++)
			MUST(parse(data, i, greeting, &again) == 0);
		MUST(parse(data, (size_t)n, greeting, &again) == n);
		if (greeting)
			continue;
		MUST(r.host_len < sizeof(r.host) && again.host_len == r.host_len);
		MUST(memcmp(r.host, again.host, r.host_len) == 0 && r.port == again.port);
		MUST(r.atyp == SOCKS_DOMAIN || strlen(r.host) == r.host_len);
	}
	return 0;
}
