/* SPDX-License-Identifier: Apache-2.0 */
/*
 * STATUS: what the guest looks like now, gathered on request only.
 */
#include "agent/status.h"
#include "agent/agent.h"
#include "lib/io.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static json_int_t meminfo_kib(const char *text, const char *key)
{
	const char *p = strstr(text, key);

	return p ? strtoll(p + strlen(key), NULL, 10) : 0;
}

json_t *status_object(struct agent *a)
{
	_cleanup_free char *text = NULL;
	struct timespec up = {0};

	if (io_read_file("/proc/meminfo", 65536, &text, NULL) < 0)
		text = strdup("");
	if (!text)
		return NULL;
	clock_gettime(CLOCK_BOOTTIME, &up);
	return json_pack("{s:s, s:b, s:I, s:I, s:I}", "repl", repl_state_name(&a->repl), "frozen",
			 a->freezer.state == FREEZE_FROZEN, "uptime_ms",
			 (json_int_t)up.tv_sec * 1000 + up.tv_nsec / 1000000, "mem_total_kib",
			 meminfo_kib(text, "MemTotal:"), "mem_available_kib",
			 meminfo_kib(text, "MemAvailable:"));
}
