/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The words of reasons, which proxy and daemon exchange. Pure; any thread.
 */
#include "egress/decide.h"

#include <assert.h>
#include <string.h>

static const char *const reasons[] = {
	[EGRESS_R_NONE] = "none",
	[EGRESS_R_BAD_HOST] = "bad_host",
	[EGRESS_R_NOT_ALLOWED] = "not_allowed",
	[EGRESS_R_PORT] = "port",
	[EGRESS_R_METHOD] = "method",
	[EGRESS_R_PATH] = "path",
	[EGRESS_R_TUNNEL] = "tunnel",
	[EGRESS_R_CEILING] = "ceiling",
	[EGRESS_R_PLAIN_HTTP] = "plain_http",
	[EGRESS_R_ADDRESS] = "address",
	[EGRESS_R_NO_NAME] = "no_name",
	[EGRESS_R_RESOLVER] = "resolver",
	[EGRESS_R_UPSTREAM] = "upstream",
	[EGRESS_R_UPSTREAM_TLS] = "upstream_tls",
	[EGRESS_R_SNI_MISSING] = "sni_missing",
	[EGRESS_R_SNI_MISMATCH] = "sni_mismatch",
	[EGRESS_R_ECH] = "ech",
	[EGRESS_R_NOT_TLS] = "not_tls",
	[EGRESS_R_BAD_REQUEST] = "bad_request",
	[EGRESS_R_HOST_MISMATCH] = "host_mismatch",
	[EGRESS_R_UPGRADE] = "upgrade",
	[EGRESS_R_CONNECTIONS] = "connections",
	[EGRESS_R_BYTES] = "bytes",
	[EGRESS_R_IDLE] = "idle",
	[EGRESS_R_TOTAL] = "total",
	[EGRESS_R_POLICY] = "policy",
	[EGRESS_R_POLICY_CHANGED] = "policy_changed",
};
static_assert(ARRAY_SIZE(reasons) == EGRESS_REASONS, "a reason has no word");

const char *egress_reason_text(enum egress_reason r)
{
	return (unsigned int)r < EGRESS_REASONS ? reasons[r] : "policy";
}

enum egress_reason egress_reason_parse(const char *word)
{
	for (size_t i = 0; word && i < ARRAY_SIZE(reasons); i++)
		if (strcmp(word, reasons[i]) == 0)
			return (enum egress_reason)i;
	return EGRESS_REASONS;
}
