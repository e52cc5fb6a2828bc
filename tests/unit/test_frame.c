/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frame codec: golden bytes, any split of the stream, broken headers, bounds of
 * reader and writer.
 */
#include "unit.h"

#include "proto/frame.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void test_header_golden(void **state)
{
	const uint8_t want[FRAME_HEADER_SIZE] = {0x02, 0x01, 0, 0, 0x81, 0, 0, 0};
	uint8_t got[FRAME_HEADER_SIZE], type;
	uint32_t len;

	(void)state;
	frame_pack_header(got, FRAME_STDOUT, 0x102);
	assert_memory_equal(got, want, sizeof(want));
	assert_int_equal(frame_unpack_header(got, &type, &len), 0);
	assert_int_equal(type, FRAME_STDOUT);
	assert_int_equal(len, 0x102);
}

static void test_header_refused(void **state)
{
	uint8_t h[FRAME_HEADER_SIZE], type;
	uint32_t len;

	(void)state;
	frame_pack_header(h, FRAME_STDOUT, FRAME_PAYLOAD_MAX);
	assert_int_equal(frame_unpack_header(h, &type, &len), 0);
	frame_pack_header(h, FRAME_STDOUT, FRAME_PAYLOAD_MAX + 1);
	assert_int_equal(frame_unpack_header(h, &type, &len), -EMSGSIZE);
	frame_pack_header(h, FRAME_STDOUT, UINT32_MAX);
	assert_int_equal(frame_unpack_header(h, &type, &len), -EMSGSIZE);
	for (int i = 5; i < 8; i++) {
		frame_pack_header(h, FRAME_STDOUT, 4);
		h[i] = 1;
		assert_int_equal(frame_unpack_header(h, &type, &len), -EPROTO);
	}
}

/* Three frames, cut into pieces of every length from 1 to the whole. */
static void test_reader_any_split(void **state)
{
	uint8_t wire[3 * FRAME_HEADER_SIZE + 300];
	size_t total;
	struct frame_writer w;

	(void)state;
	frame_writer_init(&w, sizeof(wire));
	assert_int_equal(frame_put(&w, FRAME_EXEC, "{}", 2), 0);
	assert_int_equal(frame_put(&w, FRAME_END_IN, NULL, 0), 0);
	memset(wire, 'x', 298);
	assert_int_equal(frame_put(&w, FRAME_DATA_IN, wire, 298), 0);
	total = buf_len(&w.out);
	assert_int_equal(total, sizeof(wire));
	memcpy(wire, buf_data(&w.out), total);
	for (size_t piece = 1; piece <= total; piece++) {
		const uint8_t types[] = {FRAME_EXEC, FRAME_END_IN, FRAME_DATA_IN};
		const uint32_t lens[] = {2, 0, 298};
		struct frame_reader r;
		struct frame f;
		unsigned int seen = 0;

		frame_reader_init(&r);
		for (size_t off = 0; off < total; off += piece) {
			size_t n = total - off < piece ? total - off : piece;

			assert_int_equal(frame_reader_feed(&r, wire + off, n), n);
			while (frame_reader_next(&r, &f) == 1) {
				assert_true(seen < 3);
				assert_int_equal(f.type, types[seen]);
				assert_int_equal(f.len, lens[seen]);
				if (f.len == 298)
					assert_int_equal(f.payload[297], 'x');
				seen++;
			}
		}
		assert_int_equal(seen, 3);
		frame_reader_free(&r);
	}
	frame_writer_free(&w);
}

static void test_reader_broken_stays_broken(void **state)
{
	uint8_t h[FRAME_HEADER_SIZE];
	struct frame_reader r;
	struct frame f;

	(void)state;
	frame_reader_init(&r);
	frame_pack_header(h, FRAME_STDOUT, FRAME_PAYLOAD_MAX + 1);
	assert_int_equal(frame_reader_feed(&r, h, sizeof(h)), sizeof(h));
	assert_int_equal(frame_reader_next(&r, &f), -EMSGSIZE);
	assert_int_equal(frame_reader_next(&r, &f), -EMSGSIZE);
	frame_reader_free(&r);
}

/* A peer that sends without end is stopped by the bound, and a maximal frame still fits. */
static void test_reader_bound(void **state)
{
	uint8_t chunk[4096], h[FRAME_HEADER_SIZE];
	struct frame_reader r;
	struct frame f;
	size_t taken = 0;

	(void)state;
	memset(chunk, 0, sizeof(chunk));
	frame_reader_init(&r);
	frame_pack_header(h, FRAME_DATA_IN, FRAME_PAYLOAD_MAX);
	assert_int_equal(frame_reader_feed(&r, h, sizeof(h)), sizeof(h));
	for (;;) {
		size_t n = frame_reader_feed(&r, chunk, sizeof(chunk));

		taken += n;
		if (n < sizeof(chunk))
			break;
	}
	assert_int_equal(taken, FRAME_PAYLOAD_MAX);
	assert_int_equal(frame_reader_next(&r, &f), 1);
	assert_int_equal(f.len, FRAME_PAYLOAD_MAX);
	assert_int_equal(frame_reader_next(&r, &f), 0);
	frame_reader_free(&r);
}

static void test_writer_bound(void **state)
{
	struct frame_writer w;
	uint8_t data[100] = {0};

	(void)state;
	frame_writer_init(&w, 64);
	assert_int_equal(frame_writer_room(&w), 56);
	assert_int_equal(frame_put(&w, FRAME_STDOUT, data, 57), -ENOBUFS);
	assert_int_equal(frame_put(&w, FRAME_STDOUT, data, 50), 0);
	assert_int_equal(frame_writer_room(&w), 0);
	assert_int_equal(frame_put(&w, FRAME_STDOUT, data, 0), -ENOBUFS);
	frame_writer_free(&w);
	frame_writer_init(&w, 1 << 20);
	assert_int_equal(frame_writer_room(&w), FRAME_PAYLOAD_MAX);
	assert_int_equal(frame_put(&w, FRAME_STDOUT, data, FRAME_PAYLOAD_MAX + 1), -EMSGSIZE);
	frame_writer_free(&w);
}

/* Through a real socket that fills up: nothing lost, flush says that bytes remain. */
static void test_socket_round_trip(void **state)
{
	uint8_t payload[60000];
	struct frame_writer w;
	struct frame_reader r;
	struct frame f;
	unsigned int got = 0;
	int sv[2], blocked = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(payload); i++)
		payload[i] = (uint8_t)(i * 7);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv), 0);
	frame_writer_init(&w, 1 << 20);
	frame_reader_init(&r);
	for (int i = 0; i < 16; i++)
		assert_int_equal(frame_put(&w, FRAME_DATA_OUT, payload, sizeof(payload)), 0);
	while (got < 16) {
		ssize_t n;

		blocked += frame_writer_flush(&w, sv[0]) == 1;
		n = frame_reader_fill(&r, sv[1]);
		assert_true(n > 0 || n == -EAGAIN || n == -ENOBUFS);
		while (frame_reader_next(&r, &f) == 1) {
			assert_int_equal(f.len, sizeof(payload));
			assert_memory_equal(f.payload, payload, sizeof(payload));
			got++;
		}
	}
	assert_true(blocked > 0);
	close(sv[0]);
	assert_int_equal(frame_reader_fill(&r, sv[1]), 0);
	close(sv[1]);
	frame_writer_free(&w);
	frame_reader_free(&r);
}

/* A look takes no more than it may, and leaves everything where it is. */
static void test_look(void **state)
{
	uint8_t wire[2 * FRAME_LOOK], again[sizeof(wire)];
	struct frame_reader r;
	struct frame f;
	int sv[2];

	(void)state;
	memset(wire, 'x', sizeof(wire));
	frame_pack_header(wire, FRAME_DATA_IN, FRAME_LOOK);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv), 0);
	frame_reader_init(&r);
	assert_int_equal(frame_reader_look(&r, sv[1]), -EAGAIN);
	assert_int_equal(write(sv[0], wire, sizeof(wire)), sizeof(wire));
	assert_int_equal(frame_reader_look(&r, sv[1]), FRAME_LOOK);
	assert_int_equal(frame_reader_next(&r, &f), 0);
	assert_int_equal(read(sv[1], again, FRAME_LOOK), FRAME_LOOK);
	assert_memory_equal(again, wire, FRAME_LOOK);
	assert_int_equal(frame_reader_look(&r, sv[1]), FRAME_LOOK);
	assert_int_equal(frame_reader_next(&r, &f), 1);
	assert_int_equal(f.len, FRAME_LOOK);
	assert_memory_equal(f.payload, wire + FRAME_HEADER_SIZE, FRAME_LOOK - FRAME_HEADER_SIZE);
	assert_int_equal(read(sv[1], again, sizeof(again)), FRAME_LOOK);
	close(sv[0]);
	assert_int_equal(frame_reader_look(&r, sv[1]), 0);
	close(sv[1]);
	frame_reader_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_header_golden),
		cmocka_unit_test(test_header_refused),
		cmocka_unit_test(test_reader_any_split),
		cmocka_unit_test(test_reader_broken_stays_broken),
		cmocka_unit_test(test_reader_bound),
		cmocka_unit_test(test_writer_bound),
		cmocka_unit_test(test_socket_round_trip),
		cmocka_unit_test(test_look),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
