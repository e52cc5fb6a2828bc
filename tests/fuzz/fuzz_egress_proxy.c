/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an egress proxy says, which may have been taken over: messages, one a line. Whatever comes,
 * counters stay right, records come out as one line of JSON of bounded length with the sandbox
 * first, and texts for people are printable.
 */
#define _GNU_SOURCE
#include "input.h"

#include "daemon/egress/host.h"
#include "daemon/egress/proxy_impl.h"

#include <fcntl.h>

static const char begin[] = "{\"sandbox\":\"sbx_1\",\"type\":\"";
static uint64_t decided, ended, used;

static bool on_record(struct proxy *p, const struct record *r, char *text)
{
	(void)p;
	MUST(strncmp(text, begin, sizeof(begin) - 1) == 0 && !strchr(text, '\n'));
	MUST(strlen(text) < 16384 && strlen(r->hint) < RECORD_TEXT_MAX);
	MUST(r->reason < EGRESS_REASONS && (r->allow || r->reason));
	decided += !r->end && r->allow;
	ended += r->end;
	return false;
}

static void on_policy(struct proxy *p, uint64_t serial, const char *error, json_t *ca)
{
	MUST(serial <= p->serial);
	for (const char *c = error; c && *c; c++)
		MUST(*c >= ' ' && *c <= '~');
	MUST(!ca || !strstr(json_string_value(json_object_get(ca, "cert_pem")), "PRIVATE"));
}

static void on_test(struct proxy *p, json_t *answer)
{
	(void)p;
	MUST(json_object_size(answer) == 5);
}

static void on_used(struct proxy *p, uint64_t more)
{
	MUST(more && more <= p->used);
	used += more;
	MUST(used == p->used);
}

static const struct proxy_ops ops = {
	.policy = on_policy, .record = on_record, .used = on_used, .test = on_test};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct egress_host h = {.audit = {.fd = -1}};
	static struct loop loop;
	struct proxy p = {.host = &h, .ops = &ops, .owner = &h, .sandbox = "sbx_1"};

	if (!h.loop) {
		h.loop = &loop;
		h.audit.fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
		h.audit.max = UINT64_MAX;
	}
	h.audit.open = decided = ended = used = 0;
	p.limit = (struct loop_timer){0};
	p.serial = 3;
	p.streams = 2;
	p.test = 1;
	while (size) {
		const uint8_t *nl = memchr(data, '\n', size);
		size_t n = nl ? (size_t)(nl - data) : size;

		if (proxy_message(&p, (const char *)data, n))
			break;
		MUST(used >= p.ends);
		MUST(p.open == decided - ended && h.audit.open == p.open && p.answered <= p.serial);
		size -= n + (nl != NULL);
		data += n + (nl != NULL);
	}
	loop_timer_cancel(&p.limit);
	return 0;
}
