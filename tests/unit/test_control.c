/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control messages: round trip, descriptors, and everything a broken peer may
 * send instead.
 */
#include "unit.h"

#include "lib/fdpass.h"
#include "proto/control.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int setup(void **state)
{
	static int sv[2];

	*state = sv;
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv);
}

static int teardown(void **state)
{
	int *sv = *state;

	close(sv[0]);
	close(sv[1]);
	return 0;
}

static void test_wire_golden(void **state)
{
	struct ctl_msg m = {.type = CTL_CONNECT, .id = 0x11223344, .port = 5555}, back;
	uint8_t wire[CTL_WIRE_SIZE];
	const uint8_t want[] = {'P',  'F',  'C', '1', 2, 0, 0,    0,    0x44, 0x33,
				0x22, 0x11, 0,   0,   0, 0, 0xb3, 0x15, 0,    0};

	(void)state;
	ctl_pack(wire, &m);
	assert_memory_equal(wire, want, sizeof(want));
	assert_int_equal(ctl_unpack(wire, &back), 0);
	assert_memory_equal(&m, &back, sizeof(m));
}

static void test_round_trip_with_fds(void **state)
{
	struct ctl_msg m = {.type = CTL_BOOT, .mem_mib = 512, .vcpus = 2}, got;
	int *sv = *state, fds[CTL_BOOT_FDS], in[FDPASS_MAX], before;

	memset(m.text, 'a', CTL_TEXT_MAX - 1);
	for (size_t i = 0; i < CTL_BOOT_FDS; i++)
		fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	before = count_fds();
	assert_int_equal(ctl_send(sv[0], &m, fds), 0);
	assert_int_equal(ctl_recv(sv[1], &got, in), 1);
	assert_int_equal(got.mem_mib, 512);
	assert_int_equal(strlen(got.text), CTL_TEXT_MAX - 1);
	assert_int_equal(count_fds(), before + CTL_BOOT_FDS);
	for (size_t i = 0; i < CTL_BOOT_FDS; i++) {
		assert_true(fcntl(in[i], F_GETFD) & FD_CLOEXEC);
		close(in[i]);
		close(fds[i]);
	}
	assert_int_equal(ctl_recv(sv[1], &got, in), -EAGAIN);
}

/* A message with too few, too many or unexpected descriptors is refused and leaks none. */
static void test_wrong_fd_count(void **state)
{
	static const struct {
		uint32_t type;
		size_t fds;
	} bad[] = {{CTL_BOOT, 0},    {CTL_BOOT, 4}, {CTL_BOOT, 6},  {CTL_CONNECT, 0},
		   {CTL_CONNECT, 2}, {CTL_STOP, 1}, {CTL_STATUS, 8}};
	int *sv = *state, fds[FDPASS_MAX], in[FDPASS_MAX], before;

	for (size_t i = 0; i < FDPASS_MAX; i++)
		fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	before = count_fds();
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct ctl_msg m = {.type = bad[i].type}, got;
		uint8_t wire[CTL_WIRE_SIZE];

		ctl_pack(wire, &m);
		assert_int_equal(fdpass_send(sv[0], wire, sizeof(wire), fds, bad[i].fds), 0);
		assert_int_equal(ctl_recv(sv[1], &got, in), -EPROTO);
		assert_int_equal(count_fds(), before);
	}
	for (size_t i = 0; i < FDPASS_MAX; i++)
		close(fds[i]);
}

static void test_broken_messages(void **state)
{
	struct ctl_msg m = {.type = CTL_STOP}, got;
	int *sv = *state, in[FDPASS_MAX];
	uint8_t wire[CTL_WIRE_SIZE + 1] = {0};

	ctl_pack(wire, &m);
	/* Too short, too long, empty of sense. */
	assert_int_equal(fdpass_send(sv[0], wire, CTL_WIRE_SIZE - 1, NULL, 0), 0);
	assert_int_equal(ctl_recv(sv[1], &got, in), -EPROTO);
	assert_int_equal(fdpass_send(sv[0], wire, CTL_WIRE_SIZE + 1, NULL, 0), 0);
	assert_int_equal(ctl_recv(sv[1], &got, in), -EPROTO);
	assert_int_equal(fdpass_send(sv[0], "x", 1, NULL, 0), 0);
	assert_int_equal(ctl_recv(sv[1], &got, in), -EPROTO);
	wire[0] ^= 1;
	assert_int_equal(ctl_unpack(wire, &got), -EPROTO);
	wire[0] ^= 1;
	wire[4] = 0x7f;
	assert_int_equal(ctl_unpack(wire, &got), -EPROTO);
	wire[4] = CTL_STOP;
	memset(wire + CTL_WIRE_SIZE - CTL_TEXT_MAX, 'x', CTL_TEXT_MAX);
	assert_int_equal(ctl_unpack(wire, &got), -EPROTO);
}

static void test_eof(void **state)
{
	int *sv = *state, in[FDPASS_MAX];
	struct ctl_msg got;

	close(sv[0]);
	assert_int_equal(ctl_recv(sv[1], &got, in), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_wire_golden),
		cmocka_unit_test_setup_teardown(test_round_trip_with_fds, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wrong_fd_count, setup, teardown),
		cmocka_unit_test_setup_teardown(test_broken_messages, setup, teardown),
		cmocka_unit_test_setup_teardown(test_eof, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
