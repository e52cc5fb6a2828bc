/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A question that outlives the call that asked it. Plain memory.
 */
#define _GNU_SOURCE
#include "egress/egress_impl.h"

#include <errno.h>
#include <string.h>

int question_copy(struct question *to, const struct egress_question *from)
{
	*to = (struct question){.q = *from};
	to->host_raw = malloc(from->host_len + 1);
	if (to->host_raw) {
		memcpy(to->host_raw, from->host, from->host_len);
		to->host_raw[from->host_len] = '\0';
	}
	to->method = from->method ? strdup(from->method) : NULL;
	to->path = from->path ? strdup(from->path) : NULL;
	to->q.host = to->host_raw;
	to->q.method = to->method;
	to->q.path = to->path;
	if (!to->host_raw || (from->method && !to->method) || (from->path && !to->path)) {
		question_free(to);
		return -ENOMEM;
	}
	return 0;
}

void question_free(struct question *q)
{
	free(q->host_raw);
	free(q->method);
	free(q->path);
	free(q->exec);
	*q = (struct question){0};
}
