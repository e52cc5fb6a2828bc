/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The RENEW request. Stateless; every value is fresh.
 */
#define _GNU_SOURCE
#include "daemon/renew.h"
#include "daemon/ids.h"
#include "lib/io.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

/* A random UUID (RFC 9562, version 4) as text. */
static void make_uuid(char out[37])
{
	char hex[33];

	ids_random_hex(hex, 16);
	hex[12] = '4';
	hex[16] = "89ab"[hex[16] & 3];
	snprintf(out, 37, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

int renew_entropy(char base64[BASE64_SIZE(RENEW_ENTROPY)])
{
	uint8_t entropy[RENEW_ENTROPY];

	if (getrandom(entropy, sizeof(entropy), 0) != (ssize_t)sizeof(entropy))
		return -EIO;
	base64_encode(base64, entropy, sizeof(entropy));
	explicit_bzero(entropy, sizeof(entropy));
	return 0;
}

int renew_send(struct agent_stream *s, const struct renew *r)
{
	char base64[BASE64_SIZE(RENEW_ENTROPY)], machine[33], boot[37];
	size_t size = 640 + (r->egress ? strlen(r->egress) : 0);
	_cleanup_free char *text = malloc(size);
	int n;

	if (!text)
		return -ENOMEM;
	if (renew_entropy(base64) < 0)
		return -EIO;
	ids_random_hex(machine, 16);
	make_uuid(boot);
	n = snprintf(text, size,
		     "{\"realtime_ns\":%llu,\"hostname\":\"sbx-%.12s\",\"entropy\":\"%.*s\","
		     "\"id\":\"%s\",\"machine_id\":\"%s\",\"boot_id\":\"%s\",\"generation\":%u,"
		     "\"kind\":\"%s\",\"reseed\":%s%s%s}",
		     (unsigned long long)io_realtime_ns(), r->id + 4, (int)sizeof(base64), base64,
		     r->id, machine, boot, r->generation, r->kind, r->reseed ? "true" : "false",
		     r->egress ? ",\"egress\":" : "", r->egress ? r->egress : "");
	agent_send(s, FRAME_RENEW, text, (size_t)n);
	explicit_bzero(base64, sizeof(base64));
	explicit_bzero(text, size);
	return 0;
}
