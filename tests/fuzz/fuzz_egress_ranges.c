/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges of the operator, and addresses. The input is cut at its first newline: an address of 4 or
 * 16 bytes in hexadecimal, then a list. No list allows less than none; none allows what is no
 * destination.
 */
#include "egress/addr.h"

#include "input.h"

#include <netinet/in.h>

static bool read_address(struct sockaddr_storage *ss, const uint8_t *p, size_t len)
{
	uint8_t b[16] = {0};

	for (size_t i = 0; i < len && i < 32; i++) {
		const char *digits = "0123456789abcdef", *at = p[i] ? strchr(digits, p[i]) : NULL;

		if (!at)
			return false;
		b[i / 2] |= (uint8_t)((at - digits) << (i % 2 ? 0 : 4));
	}
	memset(ss, 0, sizeof(*ss));
	if (len == 8) {
		ss->ss_family = AF_INET;
		memcpy(&((struct sockaddr_in *)ss)->sin_addr, b, 4);
	} else {
		ss->ss_family = AF_INET6;
		memcpy(&((struct sockaddr_in6 *)ss)->sin6_addr, b, 16);
	}
	return len == 8 || len == 32;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *cut = size ? memchr(data, '\n', size) : NULL;
	size_t first = cut ? (size_t)(cut - data) : size;
	struct egress_ranges *ranges = NULL;
	struct sockaddr_storage ss;
	const struct sockaddr *sa = (const struct sockaddr *)&ss;
	struct err err = {0};
	char why[EGRESS_WHY_MAX];
	json_t *list;
	int with, without;

	if (!cut || !read_address(&ss, data, first))
		return 0;
	list = json_loadb((const char *)cut + 1, size - first - 1, JSON_ALLOW_NUL, NULL);
	if (egress_ranges_parse(&ranges, list, &err) < 0)
		MUST(err.msg[0] && ranges == NULL);
	without = egress_addr_check(sa, NULL, why);
	MUST(strlen(why) > 0 && strlen(why) < sizeof(why));
	with = egress_addr_check(sa, ranges, why);
	MUST(strlen(why) > 0 && strlen(why) < sizeof(why));
	MUST(without < 0 || with == 0);
	/* A range of one address is a range. */
	MUST(!egress_ranges_name(ranges, sa) || egress_ranges_have(ranges, sa));
	MUST(strstr(why, egress_addr_class_text(egress_addr_classify(sa))));
	switch (egress_addr_classify(sa)) {
	case EGRESS_A_PUBLIC:
		MUST(without == 0);
		break;
	case EGRESS_A_UNSPECIFIED:
	case EGRESS_A_MULTICAST:
	case EGRESS_A_BROADCAST:
		MUST(with < 0);
		break;
	case EGRESS_A_NAT64:
	case EGRESS_A_ISATAP:
		break;
	default:
		MUST(without < 0);
		MUST(with < 0 || strstr(why, "allowed by the range"));
	}
	egress_ranges_free(ranges);
	json_decref(list);
	return 0;
}
