/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wire form of control messages, at either end. A packet is taken if and only if it has the
 * right length, magic, a type that is known, a text that ends, and as many descriptors as its type
 * says; what is taken packs to the same bytes, and no descriptor is lost.
 */
#define _GNU_SOURCE
#include "input.h"

#include "lib/fdpass.h"
#include "proto/control.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>

static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 64; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	uint8_t how = input_u8(&in), wire[CTL_WIRE_SIZE + 4], back[CTL_WIRE_SIZE];
	size_t len = how & 0x80 ? input_int(&in, 2) % (sizeof(wire) + 1) : CTL_WIRE_SIZE;
	size_t nfds = how % (FDPASS_MAX + 1), before;
	int fds[FDPASS_MAX], sv[2], rc;
	struct ctl_msg m;

	input_bytes(&in, wire, sizeof(wire));
	if (how & 0x40)
		memcpy(wire, "PFC1", 4);
	rc = ctl_unpack(wire, &m);
	MUST(rc == 0 || rc == -EPROTO);
	if (rc == 0) {
		MUST(strnlen(m.text, CTL_TEXT_MAX) < CTL_TEXT_MAX);
		ctl_pack(back, &m);
		MUST(memcmp(wire, back, CTL_WIRE_SIZE - CTL_TEXT_MAX) == 0);
		MUST(strcmp((char *)wire + CTL_WIRE_SIZE - CTL_TEXT_MAX, m.text) == 0);
	}
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
	for (size_t i = 0; i < nfds; i++)
		fds[i] = sv[0];
	before = open_fds();
	MUST(fdpass_send(sv[0], wire, len, fds, nfds) == 0);
	memset(fds, -1, sizeof(fds));
	rc = ctl_recv(sv[1], &m, fds);
	if (len == 0)
		MUST(rc == 0);
	else
		MUST(rc == (len == CTL_WIRE_SIZE && ctl_unpack(wire, &m) == 0 &&
					    nfds == ctl_fd_count(m.type)
				    ? 1
				    : -EPROTO));
	for (size_t i = 0; rc == 1 && i < nfds; i++)
		close(fds[i]);
	MUST(open_fds() == before);
	close(sv[0]);
	close(sv[1]);
	return 0;
}
