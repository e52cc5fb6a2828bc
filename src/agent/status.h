/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The answer to STATUS. Thread: the loop's. fork: no state.
 */
#pragma once

#include <jansson.h>

struct agent;

/* New object {"repl", "uptime_ms", "mem_total_kib", "mem_available_kib"}; NULL without memory. */
json_t *status_object(struct agent *a);
