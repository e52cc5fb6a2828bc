/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines into a pipe, a terminal and a socket that nobody reads, and into a file without room.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "lib/io.h"
#include "lib/log.h"

#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIPE_SIZE 16384

/* stderr is the end of a pipe while a test runs. */
static int saved = -1, reader = -1;

/* stderr becomes that descriptor, which is closed; reader is the other end. */
static int stderr_is(int fd)
{
	saved = dup(2);
	if (dup2(fd, 2) < 0)
		return -1;
	close(fd);
	log_never_wait();
	return io_set_nonblock(reader, 1);
}

static int setup(void **state)
{
	int ends[2];

	(void)state;
	if (pipe2(ends, O_CLOEXEC) < 0 || fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE) < 0)
		return -1;
	reader = ends[0];
	return stderr_is(ends[1]);
}

static int setup_terminal(void **state)
{
	int slave;

	(void)state;
	if (openpty(&reader, &slave, NULL, NULL, NULL) < 0)
		return -1;
	return stderr_is(slave);
}

static int setup_socket(void **state)
{
	int ends[2];

	(void)state;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return -1;
	reader = ends[0];
	return stderr_is(ends[1]);
}

static int setup_file(void **state)
{
	char path[] = "/tmp/podflare-log-XXXXXX";
	int fd = mkstemp(path);

	(void)state;
	reader = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || reader < 0 || unlink(path) < 0)
		return -1;
	return stderr_is(fd);
}

static int teardown(void **state)
{
	(void)state;
	dup2(saved, 2);
	close_fd(&saved);
	close_fd(&reader);
	return 0;
}

/* What is in the pipe: its lines, and the text itself. */
static unsigned int drain(char *text, size_t size)
{
	unsigned int lines = 0;
	size_t len = 0;
	ssize_t n;

	while ((n = io_read_some(reader, text + len, size - 1 - len)) > 0)
		len += (size_t)n;
	text[len] = '\0';
	for (const char *p = text; (p = strchr(p, '\n')); p++)
		lines++;
	return lines;
}

/* It would be waited for without an end otherwise: the alarm ends the test then. */
static void test_nobody_reads(void **state)
{
	static char text[2 * PIPE_SIZE];
	unsigned int written, lost = 0;
	const char *said;

	(void)state;
	alarm(60);
	for (int i = 0; i < 1000; i++)
		log_info("line %d of some more than a hundred bytes, which is what a request of a "
			 "client "
			 "takes and more",
			 i);
	assert_true(fcntl(2, F_GETFL) >= 0 && !(fcntl(2, F_GETFL) & O_NONBLOCK));
	written = drain(text, sizeof(text));
	assert_true(written > 10 && written < 1000);
	assert_null(strstr(text, "lost"));
	/* Whole lines, the first of them in order. */
	assert_non_null(strstr(text, "line 0 of"));
	assert_int_equal(text[strlen(text) - 1], '\n');
	log_info("there is room");
	assert_int_equal(drain(text, sizeof(text)), 2);
	said = strstr(text,
		      "lines of the log were lost: nobody read it, or its disk was full lines=");
	assert_non_null(said);
	assert_int_equal(sscanf(strstr(said, "lines=") + 6, "%u", &lost), 1);
	assert_int_equal(written + lost, 1000);
	assert_non_null(strstr(said, "there is room"));
	/* Said once. */
	log_info("another");
	assert_int_equal(drain(text, sizeof(text)), 1);
	alarm(0);
}

/* Lines may be torn: what comes next begins a new one all the same. */
static void nobody_reads_then_somebody(void)
{
	static char text[4 << 20];

	alarm(60);
	for (int i = 0; i < 20000; i++)
		log_info("line %d of some more than a hundred bytes, which is what a request of a "
			 "client takes and more",
			 i);
	assert_true(fcntl(2, F_GETFL) >= 0 && !(fcntl(2, F_GETFL) & O_NONBLOCK));
	assert_true(drain(text, sizeof(text)) > 10);
	assert_non_null(strstr(text, "line 0 of"));
	assert_null(strstr(text, "line 19999 of"));
	log_info("there is room");
	drain(text, sizeof(text));
	assert_non_null(strstr(
		text,
		" WARN lines of the log were lost: nobody read it, or its disk was full lines="));
	assert_non_null(strstr(text, " INFO there is room"));
	alarm(0);
}

static void test_a_terminal(void **state)
{
	(void)state;
	nobody_reads_then_somebody();
}

static void test_a_socket(void **state)
{
	(void)state;
	nobody_reads_then_somebody();
}

/* Who read has left: nothing is waited for, and nothing ends. */
static void test_the_reader_has_left(void **state)
{
	(void)state;
	alarm(60);
	signal(SIGPIPE, SIG_IGN);
	close_fd(&reader);
	for (int i = 0; i < 1000; i++)
		log_info("to nobody");
	alarm(0);
}

/* How long a file may be: as if the disk were full there. 0: as long as before. */
static void limit_files(rlim_t bytes)
{
	struct rlimit l;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &l), 0);
	l.rlim_cur = bytes ? bytes : l.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &l), 0);
}

/* What was cut off has a line of its own, and is among the lost ones. */
static void test_a_full_disk(void **state)
{
	static char text[1 << 16];
	unsigned int whole = 0, lost = 0, broken = 0;
	char *rest = NULL, *room;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	limit_files(1000);
	for (int i = 0; i < 20; i++)
		log_info("line %d of some more than a hundred bytes, so that one of them is cut "
			 "off by the end of the disk, here",
			 i);
	limit_files(0);
	log_info("there is room");
	drain(text, sizeof(text));
	assert_non_null(strstr(text, " INFO line 0 of"));
	room = strstr(text, "lines of the log were lost: ");
	assert_non_null(room);
	assert_int_equal(sscanf(strstr(room, " lines=") + 7, "%u", &lost), 1);
	assert_non_null(strstr(room, " INFO there is room\n"));
	for (char *l = strtok_r(text, "\n", &rest); l; l = strtok_r(NULL, "\n", &rest)) {
		if (strstr(l, " INFO line ") && strcmp(l + strlen(l) - 6, ", here") == 0)
			whole++;
		else
			broken += !strstr(l, " WARN lines of") && !strstr(l, " INFO there");
		/* No line begins within another. */
		if (strstr(l, "Z "))
			assert_null(strstr(strstr(l, "Z ") + 2, "Z "));
	}
	assert_true(broken <= 1 && whole >= 5);
	assert_int_equal(whole + lost, 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_nobody_reads, setup, teardown),
		cmocka_unit_test_setup_teardown(test_the_reader_has_left, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_terminal, setup_terminal, teardown),
		cmocka_unit_test_setup_teardown(test_a_socket, setup_socket, teardown),
		cmocka_unit_test_setup_teardown(test_a_full_disk, setup_file, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
