/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A peer's WebSocket bytes. In whatever pieces they come, the messages and the
 * end are the same; nothing is longer than its limit; and a message that came
 * out, built again, is read as itself.
 */
#include "input.h"

#include "lib/utf8.h"
#include "lib/websocket.h"

/* What comes out of one reading, mixed into one number. */
struct outcome {
	uint64_t sum;
	unsigned messages;
	int rc;
};

static void mix(struct outcome *o, const uint8_t *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		o->sum = (o->sum ^ p[i]) * 1099511628211u;
	o->sum = (o->sum ^ len) * 1099511628211u;
}

/* The message as a frame of the other role's reads as the same message. */
static void check_again(const struct websocket_message *m, enum websocket_role role, size_t max)
{
	static const uint8_t key[] = {1, 0x80, 0xff, 0x42};
	const uint8_t *mask = role == WEBSOCKET_SERVER ? key : NULL;
	struct websocket_parser p;
	struct websocket_message n;
	struct buf out;

	buf_init(&out, websocket_frame_len(m->len, mask != NULL));
	MUST(websocket_append(&out, m->type, m->data, m->len, mask) == 0);
	websocket_parser_init(&p, role, max);
	MUST(websocket_parse(&p, buf_data(&out), buf_len(&out), &n) == (ssize_t)buf_len(&out));
	MUST(n.type == m->type && n.len == m->len && memcmp(n.data, m->data, n.len) == 0);
	websocket_parser_free(&p);
	buf_free(&out);
}

static void check_message(const struct websocket_message *m, enum websocket_role role, size_t max)
{
	if (m->type == WEBSOCKET_TEXT || m->type == WEBSOCKET_BINARY)
		MUST(m->len <= max);
	else
		MUST(m->len <= WEBSOCKET_CONTROL_MAX);
	if (m->type == WEBSOCKET_TEXT || m->type == WEBSOCKET_CLOSE)
		MUST(utf8_valid(m->data, m->len));
	if (m->type != WEBSOCKET_CLOSE)
		check_again(m, role, max);
}

static struct outcome read_all(enum websocket_role role, size_t max, const uint8_t *data,
			       size_t len, size_t piece)
{
	struct websocket_parser p;
	struct outcome o = {0};

	websocket_parser_init(&p, role, max);
	while (len && o.rc == 0) {
		size_t n = len < piece ? len : piece;
		uint8_t *copy = malloc(n); /* so that a read beyond its end is seen */
		struct websocket_message m;
		ssize_t took;

		memcpy(copy, data, n);
		took = websocket_parse(&p, copy, n, &m);
		MUST(took <= (ssize_t)n && (took < 0 || (size_t)took == n || m.type));
		MUST(took != 0 && p.message.cap <= max);
		if (took < 0) {
			MUST(m.type == WEBSOCKET_NONE);
			o.rc = (int)took;
		} else {
			data += took;
			len -= (size_t)took;
		}
		if (m.type) {
			check_message(&m, role, max);
			o.messages++;
			o.sum = (o.sum ^ m.type ^ (uint64_t)m.code << 8) * 1099511628211u;
			mix(&o, m.data, m.len);
		}
		free(copy);
	}
	websocket_parser_free(&p);
	return o;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	uint8_t how = input_u8(&in);
	enum websocket_role role = how & 1 ? WEBSOCKET_SERVER : WEBSOCKET_CLIENT;
	size_t max = how & 2 ? 65536 : 16, piece = 1 + (how >> 2);
	struct outcome whole = read_all(role, max, in.p, in.left, in.left ? in.left : 1);
	struct outcome parts = read_all(role, max, in.p, in.left, piece);

	MUST(whole.sum == parts.sum && whole.messages == parts.messages && whole.rc == parts.rc);
	return 0;
}
