/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/metrics: counters and gauges in the text format of Prometheus, version
 * 0.0.4. Nothing in it names a sandbox or a host.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "lib/cleanup.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>

/* Ours, but for the one that this takes. -errno when they cannot be counted. */
static int open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = -1;

	if (!dir)
		return -errno;
	for (const struct dirent *e; (e = readdir(dir));)
		n += e->d_name[0] != '.';
	closedir(dir);
	return n;
}

/* How many descriptors there are and may be, by the names that Prometheus has for them. */
static size_t put_descriptors(char *o, size_t size)
{
	struct rlimit rl = {0};
	int n = open_fds();

	if (n < 0 || getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return 0;
	return (size_t)snprintf(o, size,
				"# HELP process_open_fds Open descriptors of the daemon.\n"
				"# TYPE process_open_fds gauge\n"
				"process_open_fds %d\n"
				"# HELP process_max_fds Descriptors that it may have.\n"
				"# TYPE process_max_fds gauge\n"
				"process_max_fds %llu\n",
				n, (unsigned long long)rl.rlim_cur);
}

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
	n += put_descriptors(text + n, size - n);
	n += audit_metrics(&d->egress.audit, text + n, size - n);
	http_reply(r, 200, "text/plain; version=0.0.4; charset=utf-8", text, n, NULL);
}
