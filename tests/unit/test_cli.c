/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pure parts of the command line: lines of a hostile stream, the bounded
 * console log, the relay's back-pressure, numbers, and the choice
 * of mode and memory.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "cli/boxhost.h"
#include "cli/cli.h"
#include "cli/conlog.h"
#include "cli/host.h"
#include "cli/lines.h"
#include "cli/relay.h"
#include "cli/tsc.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- lines --- */

struct heard {
	char text[8 * LINES_MAX];
	int n;
};

static void on_line(void *arg, const char *line)
{
	struct heard *h = arg;

	strncat(h->text, line, sizeof(h->text) - strlen(h->text) - 2);
	strcat(h->text, "|");
	h->n++;
}

static void test_lines_in_any_pieces(void **state)
{
	static const char stream[] = "one\ntwo\r\n\n\x1b[31mred\ttab\x7f\xc2\x9bm\nrest";

	(void)state;
	for (size_t piece = 1; piece < sizeof(stream); piece++) {
		struct lines l = {.len = 0};
		struct heard h = {.n = 0};

		for (size_t at = 0; at < sizeof(stream) - 1; at += piece) {
			size_t left = sizeof(stream) - 1 - at;

			lines_feed(&l, stream + at, left < piece ? left : piece, on_line, &h);
		}
		assert_int_equal(h.n, 4);
		lines_end(&l, on_line, &h);
		lines_end(&l, on_line, &h);
		assert_string_equal(h.text, "one|two||?[31mred\ttab??m|rest|");
	}
}

static void test_long_line_is_cut(void **state)
{
	static char stream[3 * LINES_MAX];
	struct lines l = {.len = 0};
	struct heard h = {.n = 0};

	(void)state;
	memset(stream, 'x', sizeof(stream));
	lines_feed(&l, stream, sizeof(stream), on_line, &h);
	assert_int_equal(h.n, 0);
	lines_feed(&l, "\nnext\n", 6, on_line, &h);
	assert_int_equal(h.n, 2);
	assert_int_equal(strlen(h.text), LINES_MAX - 1 + strlen("|next|"));
	assert_string_equal(h.text + LINES_MAX - 1, "|next|");
}

/* --- console log --- */

static void test_last_lines(void **state)
{
	struct conlog c;
	char text[64], line[32];

	(void)state;
	assert_int_equal(conlog_open(&c, NULL, NULL), 0);
	conlog_last_lines(&c, 3, text, sizeof(text));
	assert_string_equal(text, "");
	conlog_write(&c, "only", 4);
	conlog_last_lines(&c, 3, text, sizeof(text));
	assert_string_equal(text, "only");
	for (int i = 0; i < 5000; i++) {
		int n = snprintf(line, sizeof(line), "\n\x1bline %d", i);

		conlog_write(&c, line, (size_t)n);
	}
	conlog_write(&c, "\n", 1);
	conlog_last_lines(&c, 2, text, sizeof(text));
	assert_string_equal(text, "line 4998\nline 4999\n");
	/* A small buffer gets the end, not the beginning. */
	conlog_last_lines(&c, 100, text, 12);
	assert_string_equal(text, "line 4999\n");
	conlog_close(&c);
}

static void test_log_file_is_bounded(void **state)
{
	char dir[] = "/tmp/podflare-test-XXXXXX";
	char path[64], old[64], chunk[1000];
	struct err err = {0};
	struct conlog c;
	struct stat st;

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/log", dir);
	snprintf(old, sizeof(old), "%s/log.1", dir);
	memset(chunk, 'c', sizeof(chunk));
	assert_int_equal(conlog_open(&c, path, &err), 0);
	for (int i = 0; i < 5 * CONLOG_MAX / (int)sizeof(chunk); i++)
		conlog_write(&c, chunk, sizeof(chunk));
	assert_int_equal(stat(path, &st), 0);
	assert_true(st.st_size > 0 && st.st_size <= CONLOG_MAX);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(stat(old, &st), 0);
	assert_true(st.st_size <= CONLOG_MAX);
	conlog_close(&c);
	/* The next run keeps the last one's log. */
	assert_int_equal(conlog_open(&c, path, &err), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 0);
	conlog_close(&c);
	unlink(path);
	unlink(old);
	rmdir(dir);
	assert_true(conlog_open(&c, path, &err) < 0);
	assert_non_null(strstr(err.msg, path));
}

/* --- relay --- */

struct relayed {
	struct loop loop;
	struct relay relay;
	int src[2]; /* we write to [1] */
	int dst[2]; /* we read from [0] */
	int done;
};

static void on_done(struct relay *r)
{
	struct relayed *t = r->arg;

	t->done++;
}

static void relayed_start(struct relayed *t)
{
	*t = (struct relayed){.done = 0};
	assert_int_equal(loop_init(&t->loop), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, t->src), 0);
	assert_int_equal(pipe(t->dst), 0); /* blocking, as the descriptors of a shell are */
	t->relay = (struct relay){.done = on_done, .arg = t};
	assert_int_equal(relay_start(&t->relay, &t->loop, t->src[0], t->dst[1]), 0);
}

static void relayed_end(struct relayed *t)
{
	relay_stop(&t->relay);
	for (int i = 0; i < 2; i++) {
		close_fd(&t->src[i]);
		close_fd(&t->dst[i]);
	}
	loop_free(&t->loop);
}

/* A reader that does not read stops the reading, never the loop; then every byte arrives. */
static void test_relay_waits_for_its_reader(void **state)
{
	struct relayed t;
	size_t sent = 0, got = 0;
	bool closed = false;
	int idle = 0;

	(void)state;
	relayed_start(&t);
	while (idle < 10) {
		uint8_t block[1000];
		ssize_t n;

		for (size_t i = 0; i < sizeof(block); i++)
			block[i] = (uint8_t)((sent + i) * 7);
		n = io_write_some(t.src[1], block, sizeof(block));
		sent += n > 0 ? (size_t)n : 0;
		idle = n > 0 ? 0 : idle + 1;
		assert_int_equal(loop_run_once(&t.loop, 0), 0);
	}
	/* Both are full: the pipe, the chunk, and what the socket holds. No spinning meanwhile. */
	assert_true(sent > 65536 + RELAY_CHUNK);
	assert_int_equal(t.relay.len > 0, 1);
	while (!t.done || got < sent) {
		uint8_t block[3000];
		ssize_t n;

		assert_int_equal(loop_run_once(&t.loop, 0), 0);
		if (got == sent && !closed) {
			closed = true;
			close_fd(&t.src[1]);
			continue;
		}
		if (got == sent)
			continue;
		n = io_read_some(t.dst[0], block, sizeof(block));
		assert_true(n > 0);
		for (ssize_t i = 0; i < n; i++)
			assert_int_equal(block[i], (uint8_t)((got + (size_t)i) * 7));
		got += (size_t)n;
	}
	assert_int_equal(t.done, 1);
	relayed_end(&t);
}

/* A reader that is gone must not stop the other side: the rest is drained and dropped. */
static void test_relay_without_reader(void **state)
{
	struct relayed t;
	char block[1000] = "";
	int blocks = 0;

	(void)state;
	relayed_start(&t);
	close_fd(&t.dst[0]);
	while (blocks < 2000) {
		blocks += io_write_some(t.src[1], block, sizeof(block)) > 0;
		assert_int_equal(loop_run_once(&t.loop, 0), 0);
	}
	close_fd(&t.src[1]);
	while (!t.done)
		assert_int_equal(loop_run_once(&t.loop, 1000), 0);
	relayed_end(&t);
}

/* The end of the source while its last chunk still waits: the chunk is not lost. */
static void test_relay_end_behind_a_full_pipe(void **state)
{
	static char fill[1 << 20];
	struct relayed t;
	size_t before = 0, got = 0;
	ssize_t n;

	(void)state;
	relayed_start(&t);
	assert_int_equal(io_set_nonblock(t.dst[1], 1), 0);
	while ((n = io_write_some(t.dst[1], fill, sizeof(fill))) > 0)
		before += (size_t)n;
	assert_int_equal(io_write_full(t.src[1], "the end", 7), 0);
	close_fd(&t.src[1]);
	for (int i = 0; i < 5; i++)
		assert_int_equal(loop_run_once(&t.loop, 0), 0);
	assert_int_equal(t.done, 0);
	assert_int_equal(io_set_nonblock(t.dst[0], 1), 0);
	while (!t.done || got < before + 7) {
		n = io_read_some(t.dst[0], fill, sizeof(fill));
		got += n > 0 ? (size_t)n : 0;
		assert_int_equal(loop_run_once(&t.loop, 0), 0);
	}
	assert_int_equal(got, before + 7);
	relayed_end(&t);
}

/* Sends it, and has it relayed. */
static void relayed_pass(struct relayed *t, const char *text)
{
	assert_int_equal(io_write_full(t->src[1], text, strlen(text)), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(loop_run_once(&t->loop, 0), 0);
	assert_int_equal(t->relay.len, 0);
}

/* What comes while the disk is full is lost, in whole lines; what comes later is not. */
static void test_relay_to_a_full_disk(void **state)
{
	char text[200] = "";
	struct relayed t;
	int full, there;

	(void)state;
	relayed_start(&t);
	full = open("/dev/full", O_WRONLY | O_CLOEXEC);
	there = dup(t.dst[1]);
	assert_true(full >= 0 && there >= 0);
	relayed_pass(&t, "one\ntwo, of which there is a be");
	assert_true(dup2(full, t.dst[1]) >= 0);
	relayed_pass(&t, "ginning\nthree\n");
	assert_true(dup2(there, t.dst[1]) >= 0);
	relayed_pass(&t, "four\n");
	assert_true(dup2(full, t.dst[1]) >= 0);
	relayed_pass(&t, "five, which is");
	relayed_pass(&t, " a long");
	assert_true(dup2(there, t.dst[1]) >= 0);
	relayed_pass(&t, " line\nsix\n");
	relayed_pass(&t, "seven\n");
	assert_true(io_read_some(t.dst[0], text, sizeof(text) - 1) > 0);
	assert_string_equal(text, "one\ntwo, of which there is a be\nfour\nsix\nseven\n");
	close(full);
	close(there);
	relayed_end(&t);
}

/* --- numbers --- */

static void test_numbers(void **state)
{
	static const char *const bad[] = {"",    "-1",  "+1", " 1",  "1 ",
					  "0x1", "1.0", "9",  "101", "18446744073709551617"};
	uint64_t n;

	(void)state;
	assert_int_equal(cli_parse_number("--n", "10", 10, 100, &n, NULL), 0);
	assert_int_equal(n, 10);
	assert_int_equal(cli_parse_number("--n", "100", 10, 100, &n, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(cli_parse_number("--n", bad[i], 10, 100, &n, NULL), -EINVAL);
}

/* --- mode and memory --- */

static void test_mode(void **state)
{
	const struct host_facts works = {.cpu_svm = true};
	const struct host_facts no_flag = {.probe_rc = 0};
	const struct host_facts no_device = {.cpu_vmx = true, .kvm_errno = ENOENT, .probe_rc = -1};
	const struct host_facts hangs = {.cpu_vmx = true, .probe_rc = -ETIMEDOUT, .probe = "hung"};
	const struct host_facts *const without[] = {&no_flag, &no_device, &hangs};
	static const char *const reasons[] = {"neither vmx nor svm", "no /dev/kvm", "hung"};
	enum host_mode mode;
	char text[256];

	(void)state;
	assert_int_equal(host_choose(&works, HOST_AUTO, &mode, NULL), 0);
	assert_int_equal(mode, HOST_HARDWARE);
	assert_int_equal(host_choose(&works, HOST_EMULATED, &mode, NULL), 0);
	assert_int_equal(mode, HOST_EMULATED);
	for (size_t i = 0; i < ARRAY_SIZE(without); i++) {
		struct err err = {0};

		assert_int_equal(host_choose(without[i], HOST_AUTO, &mode, NULL), 0);
		assert_int_equal(mode, HOST_EMULATED);
		assert_int_equal(host_choose(without[i], HOST_HARDWARE, &mode, &err), -ENODEV);
		host_reason(without[i], text, sizeof(text));
		assert_non_null(strstr(text, reasons[i]));
		assert_non_null(strstr(err.msg, text));
	}
}

static void test_memory(void **state)
{
	static const struct {
		uint64_t available, wanted;
		unsigned int mib; /* 0: refused */
	} cases[] = {
		{1535, 0, 0},     {1536, 0, 1536},       {3000, 0, 1536},    {6000, 0, 3000},
		{64000, 0, 8192}, {64000, 20000, 20000}, {1200, 1024, 1024}, {4000, 4001, 0},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct host_facts f = {.mem_available_mib = cases[i].available};
		struct err err = {0};
		unsigned int mib = 0;
		int rc = boxhost_memory(&f, cases[i].wanted, &mib, &err);

		assert_int_equal(rc, cases[i].mib ? 0 : -ENOMEM);
		assert_int_equal(mib, cases[i].mib);
		assert_int_equal(err.msg[0] != '\0', cases[i].mib == 0);
	}
}

/* Two measurements agree to a thousandth. */
static void test_tsc(void **state)
{
	struct tsc_reading r;
	unsigned int a, b;

	(void)state;
	tsc_begin(&r);
	a = tsc_khz(&r);
	tsc_begin(&r);
	b = tsc_khz(&r);
	assert_in_range(a, 100000, 20000000);
	assert_in_range(b, a - a / 1000, a + a / 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lines_in_any_pieces),
		cmocka_unit_test(test_long_line_is_cut),
		cmocka_unit_test(test_last_lines),
		cmocka_unit_test(test_log_file_is_bounded),
		cmocka_unit_test(test_relay_waits_for_its_reader),
		cmocka_unit_test(test_relay_without_reader),
		cmocka_unit_test(test_relay_end_behind_a_full_pipe),
		cmocka_unit_test(test_relay_to_a_full_disk),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_mode),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_tsc),
	};

	/* As podflare does: a reader that goes away is an error, not a signal. */
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
