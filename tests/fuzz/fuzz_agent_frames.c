/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of a hostile agent, at the daemon's end. The first bytes choose requests; the rest is a
 * script of what the agents do: frames of any type and content, bytes that are no frames, hanging
 * up; and of their clients: not reading, leaving, writing to a terminal. Time passes as the script
 * says. What clients get is checked by the rig.
 */
#define _GNU_SOURCE
#include "daemon_rig.h"

#include "daemon/limits.h"
#include "lib/io.h"

static const struct {
	const char *method, *tail, *query, *body;
} requests[] = {
	{"POST", "/exec", NULL, "{\"code\":\"1\",\"rich\":true,\"exec_id\":\"a\"}"},
	{"POST", "/exec", NULL,
	 "{\"code\":\"1\",\"language\":\"bash\",\"stdin\":\"abc\",\"timeout\":1}"},
	{"POST", "/exec", NULL, "{\"code\":\"1\",\"exec_id\":\"b\",\"context_id\":\"c\"}"},
	{"POST", "/exec/a/interrupt", NULL, "{\"escalate\":true}"},
	{"GET", "/files", "path=/a", NULL},
	{"PUT", "/files", "path=/a", "0123456789"},
	{"GET", "/files/list", "path=/a&depth=3", NULL},
	{"GET", "/files/stat", "path=/a", NULL},
	{"POST", "/files/mkdir", NULL, "{\"path\":\"/a\"}"},
	{"GET", "/contexts", NULL, NULL},
	{"POST", "/contexts", NULL, "{\"context_id\":\"c\"}"},
	{"POST", "/commands", NULL, "{\"code\":\"1\",\"pty\":{\"cols\":80,\"rows\":24}}"},
	{"GET", "/commands", NULL, NULL},
	{"GET", "/commands/a", NULL, NULL},
	{"GET", "/commands/a/stream", "stdout=0&stderr=0", NULL},
	{"GET", "/commands/a/terminal", "stdout=0", NULL},
	{"POST", "/commands/a/stdin", NULL, "input"},
	{"POST", "/commands/a/resize", NULL, "{\"cols\":1,\"rows\":2}"},
	{"POST", "/fork", NULL, "{\"n\":2}"},
	{"GET", "/diff/sbx_00000000000000000000000000000001", NULL, NULL},
	{"PUT", "/egress", NULL, "{\"allow\":[\"a.test\"]}"},
};

static void begin(struct rig *g, uint8_t which)
{
	char path[160];
	unsigned i = which % (unsigned)ARRAY_SIZE(requests);
	const char *body = requests[i].body ? requests[i].body : "";

	snprintf(path, sizeof(path), "/v1/sandboxes/%s%s", g->id[which & 0x80 ? 1 : 0],
		 requests[i].tail);
	rig_request(g, requests[i].method, path, requests[i].query, body, strlen(body));
}

/* Payloads that a parser might like; the input follows, or takes the place of their last bytes. */
static const char *const texts[] = {
	"",
	"{}",
	("{\"exit_code\":0,\"duration_ms\":1,\"bytes_dropped\":0,\"truncated\""
	 ":false,\"reason\":\"exited\",\"state\":\"preserved\",\"log\":{\"stdout\""
	 ":\"/tmp/l\"}}"),
	("{\"exit_code\":130,\"duration_ms\":1,\"bytes_dropped\":9,\"truncate"
	 "d\":true,\"reason\":\"cancelled\",\"state\":\"lost\",\"signal\":9}"),
	"{\"code\":\"exists\",\"message\":\"it is there\"}",
	"{\"type\":\"result\",\"data\":{\"text/plain\":\"1\"}}",
	"{\"type\":\"error\",\"name\":\"E\",\"value\":\"v\",\"traceback\":[\"t\"]}",
	("{\"contexts\":[{\"id\":\"c\",\"state\":\"ready\",\"cwd\":\"/\",\"user\":\"use"
	 "r\",\"language\":\"python\"}]}"),
	("{\"commands\":[{\"id\":\"a\",\"pid\":1,\"state\":\"ended\",\"pty\":false,\""
	 "started_ms\":1,\"code\":\"x\",\"language\":\"bash\",\"exit_code\":0,\"re"
	 "ason\":\"exited\",\"stdout\":{\"start\":0,\"end\":1},\"stderr\":{\"start"
	 "\":0,\"end\":0}}]}"),
	("{\"path\":\"/a\",\"type\":\"file\",\"size\":5,\"mode\":420,\"mtime_ms\":1,"
	 "\"uid\":0,\"gid\":0}\n"),
	"{\"type\":\"position\",\"stdout\":0,\"stderr\":0,\"pid\":7}",
	"{\"path\":\"/a\",\"size\":10,\"complete\":true}",
	("{\"path\":\"/t/a\",\"type\":\"file\",\"size\":5,\"mode\":420,\"ino\":2,\"ct"
	 "ime_ns\":2,\"mtime_ns\":2,\"below\":null}\n"),
	"\5\1\1\1",
};

static void frame(struct rig *g, struct input *in)
{
	static const uint8_t types[] = {FRAME_STDOUT,     FRAME_STDERR,   FRAME_EXIT,
					FRAME_ERROR,      FRAME_PONG,     FRAME_OK,
					FRAME_DATA_OUT,   FRAME_END_OUT,  FRAME_EVENT,
					FRAME_EVENT_PART, FRAME_STDIN_ACK};
	uint8_t where = input_u8(in), type = input_u8(in), what = input_u8(in);
	const char *text = texts[what % ARRAY_SIZE(texts)];
	size_t fixed = strlen(text), more = input_u8(in);
	uint8_t payload[1024];

	if (where & 0x40) /* more than one read's worth */
		more = 0;
	memcpy(payload, text, fixed);
	if (what & 0x80)
		fixed -= more < fixed ? more : fixed;
	more = more < in->left ? more : in->left;
	input_bytes(in, payload + fixed, more);
	for (unsigned i = 0; i < (where & 0x40 ? 40u : 1u); i++)
		rig_frame(g, where % 8, type & 0x80 ? type : types[type % ARRAY_SIZE(types)],
			  payload, fixed + more);
}

/* A client does something. */
static void client(struct rig *g, struct input *in)
{
	uint8_t what = input_u8(in), bytes[64];
	struct rig_call *c = &g->call[what / 8 % RIG_CALLS];
	size_t len;

	if (!c->there)
		return;
	switch (what % 4) {
	case 0:
		rig_leave(c);
		break;
	case 1:
		c->stalled = !c->stalled;
		break;
	default:
		len = input_u8(in) % sizeof(bytes);
		input_bytes(in, bytes, len);
		if (c->peer >= 0)
			(void)io_send_some(c->peer, bytes, len);
		break;
	}
}

static void step(struct rig *g, struct input *in)
{
	uint8_t op = input_u8(in), bytes[256];
	size_t len;

	switch (op % 8) {
	case 0:
	case 1:
	case 2:
		frame(g, in);
		break;
	case 3:
		len = input_u8(in);
		input_bytes(in, bytes, len);
		rig_bytes(g, op / 8, bytes, len);
		break;
	case 4:
		rig_hang_up(g, op / 8);
		break;
	case 5:
		client(g, in);
		break;
	case 6:
		rig_wait(g, (uint64_t)input_u8(in) * SECOND_NS / 8);
		break;
	case 7:
		begin(g, input_u8(in));
		break;
	}
	/* Else the daemon finds this and what the next step does together. */
	if (!(op & 0x80))
		rig_turn(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct rig g;
	struct input in = {data, size};
	unsigned n = input_u8(&in) % 4u;

	rig_init(&g);
	for (unsigned i = 0; i <= n; i++)
		begin(&g, input_u8(&in));
	rig_turn(&g);
	while (in.left)
		step(&g, &in);
	rig_wait(&g, SECOND_NS);
	rig_free(&g);
	return 0;
}
