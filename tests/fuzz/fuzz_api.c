/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests to the daemon: a few of them one after the other, each with any query and any body, to
 * sandboxes whose agents answer something, nothing, or are gone. What a request may expect is
 * checked by the rig.
 *
 * Input, for each request: a byte for the endpoint, a byte for how it goes, the query up to a
 * newline, the body up to a byte 0xff.
 */
#define _GNU_SOURCE
#include "daemon_rig.h"

#include "daemon/api.h"
#include "daemon/limits.h"

#define REQUESTS 6u

/* The path of an endpoint: which sandbox it names, and what stands in the second place. */
static void make_path(char *out, size_t size, const char *pattern, const struct rig *g, uint8_t how)
{
	static const char *const others[] = {"default", "exec_1", "exec_000000000000", "x"};
	unsigned nth = 0;
	size_t n = 0;

	while (*pattern && n + 1 < size) {
		const char *name = g->id[how & 1];

		if (*pattern != ':') {
			out[n++] = *pattern++;
			continue;
		}
		if (nth++)
			name = how & 2 ? g->id[~how & 1] : others[how >> 2 & 3];
		n += (size_t)snprintf(out + n, size - n, "%s", name);
		pattern += strcspn(pattern, "/");
	}
	out[n] = '\0';
}

static void agent_answers(struct rig *g, uint8_t how)
{
	static const char ok[] = "{}", exit_ok[] = "{\"exit_code\":0,\"duration_ms\":1}",
			  error[] = "{\"error\":\"not_found\",\"message\":\"no such file\"}";

	for (unsigned i = 0; i < RIG_AGENTS; i++)
		switch (how >> 5) {
		case 0:
			break;
		case 1:
			rig_frame(g, i, FRAME_OK, ok, 2);
			break;
		case 2:
			rig_frame(g, i, FRAME_EXIT, exit_ok, sizeof(exit_ok) - 1);
			break;
		case 3:
			rig_frame(g, i, FRAME_ERROR, error, sizeof(error) - 1);
			break;
		case 4:
			rig_frame(g, i, FRAME_DATA_OUT, "bytes", 5);
			rig_frame(g, i, FRAME_END_OUT, NULL, 0);
			break;
		case 5:
			rig_hang_up(g, i);
			break;
		default:
			rig_frame(g, i, FRAME_OK,
				  "{\"entries\":[],\"contexts\":[],\"commands\":[]}", 42);
			break;
		}
}

static void one_request(struct rig *g, struct input *in)
{
	const struct route *route = &api_routes[input_u8(in) % api_route_count];
	uint8_t how = input_u8(in);
	const uint8_t *line = memchr(in->p, '\n', in->left), *end;
	size_t len = line ? (size_t)(line - in->p) : 0, body;
	char query[512], path[256];
	uint8_t *copy;

	len = len < sizeof(query) ? len : sizeof(query) - 1;
	input_bytes(in, query, len);
	query[len] = '\0';
	if (line)
		input_u8(in);
	end = in->left ? memchr(in->p, 0xff, in->left) : NULL;
	body = end ? (size_t)(end - in->p) : in->left;
	/* A copy, so that a read beyond its end is seen. */
	copy = malloc(body ? body : 1);
	MUST(copy);
	input_bytes(in, copy, body);
	input_u8(in);
	make_path(path, sizeof(path), route->pattern, g, how);
	rig_request(g, route->method, path, how & 0x10 ? NULL : query, copy, body);
	free(copy);
	rig_turn(g);
	agent_answers(g, how);
	rig_turn(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct rig g;
	struct input in = {data, size};

	rig_init(&g);
	for (unsigned i = 0; in.left && i < REQUESTS; i++)
		one_request(&g, &in);
	rig_wait(&g, SECOND_NS);
	rig_wait(&g, 400 * SECOND_NS);
	rig_free(&g);
	return 0;
}
