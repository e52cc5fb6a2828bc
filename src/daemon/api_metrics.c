/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/metrics: counters and gauges in the text format of Prometheus, version
 * 0.0.4. Nothing in it names a sandbox or a host.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "lib/cleanup.h"

#include <stdio.h>

void api_metrics(struct request *r)
{
	struct daemon *d = r->http->d;
	size_t size = AUDIT_METRICS_MAX + 1024;
	_cleanup_free char *text = malloc(size);
	unsigned int sandboxes = 0;
	size_t n;

	if (!text) {
		reply_json(r, 500, NULL);
		return;
	}
	list_for_each (sb, &d->registry.live, struct sandbox, link)
		sandboxes += sb->announced;
	n = (size_t)snprintf(text, size,
			     "# HELP podflare_sandboxes Sandboxes that live.\n"
			     "# TYPE podflare_sandboxes gauge\n"
			     "podflare_sandboxes %u\n"
			     "# HELP podflare_egress_proxies Processes of podflare-egress.\n"
			     "# TYPE podflare_egress_proxies gauge\n"
			     "podflare_egress_proxies %u\n",
			     sandboxes, d->egress.nproxies);
	n += audit_metrics(&d->egress.audit, text + n, size - n);
	http_reply(r, 200, "text/plain; version=0.0.4; charset=utf-8", text, n, NULL);
}
