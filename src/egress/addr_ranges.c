/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operator's ranges: parsing and look-up. Constant after parsing; any thread. fork: plain
 * memory.
 */
#include "egress/addr_impl.h"
#include "egress/names.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct egress_ranges {
	size_t n;
	struct addr_range v[];
};

bool addr_bits_equal(const uint8_t *a, const uint8_t *b, unsigned bits)
{
	unsigned whole = bits / 8, rest = bits % 8;

	if (memcmp(a, b, whole) != 0)
		return false;
	return rest == 0 || ((a[whole] ^ b[whole]) >> (8 - rest)) == 0;
}

/* 0..max, decimal, no sign, no zero before it; or -1. */
static int parse_bits(const char *s, int max)
{
	int v = 0;

	if (!*s || strlen(s) > 3 || (s[0] == '0' && s[1]))
		return -1;
	for (; *s; s++) {
		if (*s < '0' || *s > '9')
			return -1;
		v = v * 10 + (*s - '0');
	}
	return v <= max ? v : -1;
}

/* NULL, or what is wrong. */
static const char *parse_range(struct addr_range *r, const char *text, size_t len)
{
	char address[INET6_ADDRSTRLEN + 1];
	const char *slash = memchr(text, '/', len);
	int bits, max;

	if (strlen(text) != len)
		return "has a NUL byte";
	if (!slash)
		return "has no length; a range is written like 192.0.2.0/24 or 192.0.2.1/32";
	if ((size_t)(slash - text) >= sizeof(address))
		return "is not a range of addresses";
	memcpy(address, text, (size_t)(slash - text));
	address[slash - text] = 0;
	memset(r, 0, sizeof(*r));
	r->v6 = strchr(address, ':') != NULL;
	/* Takes dotted decimal with four parts only, and no zones. */
	if (inet_pton(r->v6 ? AF_INET6 : AF_INET, address, r->bytes) != 1)
		return "is not a range of addresses";
	max = r->v6 ? 128 : 32;
	bits = parse_bits(slash + 1, max);
	if (bits < 0)
		return r->v6 ? "has a length that is not a number from 0 to 128"
			     : "has a length that is not a number from 0 to 32";
	r->bits = (uint8_t)bits;
	for (int i = bits; i < max; i++) {
		if (r->bytes[i / 8] & (0x80 >> (i % 8)))
			return "has bits set behind its length";
	}
	return NULL;
}

int egress_ranges_parse(struct egress_ranges **out, const json_t *list, struct err *err)
{
	struct egress_ranges *r;
	size_t n = json_array_size(list), i;
	json_t *item;

	if (!json_is_array(list))
		return err_text(err, EINVAL, "the ranges are not an array");
	if (n > EGRESS_RANGES_MAX)
		return err_text(err, EINVAL, "there are more than %u ranges", EGRESS_RANGES_MAX);
	r = calloc(1, sizeof(*r) + n * sizeof(r->v[0]));
	if (!r)
		return err_set(err, ENOMEM, "ranges of addresses");
	json_array_foreach(list, i, item)
	{
		char quoted[EGRESS_QUOTE_MAX];
		const char *fault;

		if (!json_is_string(item)) {
			free(r);
			return err_text(err, EINVAL, "range %zu: is not a string", i + 1);
		}
		fault = parse_range(&r->v[i], json_string_value(item), json_string_length(item));
		if (fault) {
			egress_quote(quoted, json_string_value(item), json_string_length(item));
			free(r);
			return err_text(err, EINVAL, "range %zu (%s): %s", i + 1, quoted, fault);
		}
	}
	r->n = n;
	*out = r;
	return 0;
}

void egress_ranges_free(struct egress_ranges *r)
{
	free(r);
}

const struct addr_range *egress_ranges_find(const struct egress_ranges *r, bool v6,
					    const uint8_t *bytes, unsigned min_bits)
{
	const struct addr_range *best = NULL;

	for (size_t i = 0; r && i < r->n; i++) {
		const struct addr_range *a = &r->v[i];

		if (a->v6 == v6 && a->bits >= min_bits &&
		    addr_bits_equal(a->bytes, bytes, a->bits) && (!best || a->bits > best->bits))
			best = a;
	}
	return best;
}

void addr_range_text(const struct addr_range *r, char out[ADDR_RANGE_TEXT_MAX])
{
	size_t n;

	if (!inet_ntop(r->v6 ? AF_INET6 : AF_INET, r->bytes, out, INET6_ADDRSTRLEN))
		out[0] = 0;
	n = strlen(out);
	snprintf(out + n, ADDR_RANGE_TEXT_MAX - n, "/%u", (unsigned)r->bits);
}
