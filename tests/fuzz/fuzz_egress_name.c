/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names. The input is a name as a client may write it. What has a normal form has one that is its
 * own, is a host name of DNS, is no address to those who read addresses leniently, and does not
 * depend on the case of letters.
 */
#include "egress/names.h"
#include "egress/rules.h"

#include "input.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>

static void check_form(const char *out)
{
	size_t label = 0;
	struct in_addr in;
	uint8_t in6[16];

	MUST(strlen(out) >= 3 && strlen(out) <= EGRESS_HOST_MAX && strchr(out, '.'));
	for (const char *p = out;; p++) {
		if (*p == '.' || *p == 0) {
			MUST(label >= 1 && label <= 63);
			MUST(p[-1] != '-' && *(p - label) != '-');
			label = 0;
			if (*p == 0)
				break;
			continue;
		}
		MUST(islower(*p) || isdigit(*p) || *p == '-' || *p == '_');
		label++;
	}
	MUST(inet_aton(out, &in) == 0 && inet_pton(AF_INET6, out, in6) != 1);
	MUST(strcmp(out, "localhost") != 0 && strcmp(out, "egress") != 0);
}

static void check_case(const uint8_t *data, size_t size, const char *out)
{
	char other[EGRESS_HOST_MAX + 1];
	char *upper = malloc(size);
	bool ascii = true;

	MUST(upper != NULL);
	for (size_t i = 0; i < size; i++) {
		upper[i] = (char)(data[i] >= 'a' && data[i] <= 'z' ? data[i] - 32 : data[i]);
		ascii = ascii && data[i] < 0x80;
	}
	MUST(egress_host_normal(upper, size, other, NULL) == 0);
	MUST(strcmp(out, other) == 0);
	if (ascii)
		MUST(strlen(out) == size && strncasecmp(out, (const char *)data, size) == 0);
	else
		MUST(strstr(out, "xn--") != NULL);
	free(upper);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char out[EGRESS_HOST_MAX + 1], again[EGRESS_HOST_MAX + 1], quoted[EGRESS_QUOTE_MAX];
	struct err err = {0};
	int rc = egress_host_normal((const char *)data, size, out, &err);

	egress_quote(quoted, (const char *)data, size);
	MUST(strlen(quoted) < sizeof(quoted) && quoted[strlen(quoted) - 1] == '"');
	for (const char *p = quoted; *p; p++)
		MUST(*p >= 0x20 && *p < 0x7f);
	if (rc < 0) {
		MUST(rc == -EINVAL && out[0] == 0 && strstr(err.msg, quoted) == err.msg);
		return 0;
	}
	check_form(out);
	MUST(egress_host_normal(out, strlen(out), again, NULL) == 0);
	MUST(strcmp(out, again) == 0);
	check_case(data, size, out);
	return 0;
}
