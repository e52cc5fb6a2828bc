/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Process 1 of a guest that opens connections to its host (vmegress.c): does
 * what it is told on GUEST_AGENT_PORT, one order at a time. An order is a letter
 * and a number, an answer a number; see `orders` below. Connections are the
 * program's, so a copy of the guest has them all.
 *
 * Its files are those of the agent's initramfs.
 */
#define _GNU_SOURCE
#include "agent/boot.h"
#include "agent/modules.h"
#include "agent/status_port.h"
#include "lib/io.h"
#include "proto/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_CONNS 128

static int conn[MAX_CONNS];
static unsigned nconn;

void boot_say(const char *fmt, ...)
{
	_cleanup_fd int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	va_list ap;

	va_start(ap, fmt);
	vdprintf(fd, fmt, ap);
	va_end(ap);
}

static struct sockaddr_vm address(unsigned cid, unsigned port)
{
	return (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
}

/* Connects by itself after so many seconds at most; flags: SOCK_NONBLOCK or none. */
static int new_socket(int flags, int seconds)
{
	const struct timeval limit = {.tv_sec = seconds};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

	if (setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof(limit)) < 0)
		boot_say("connect timeout: %s", strerror(errno));
	return fd;
}

static uint8_t pattern(uint32_t i)
{
	return (uint8_t)((i * 2654435761u) >> 13 ^ i);
}

/* Opens a connection to that port: 0 or an errno. */
static int order_connect(uint32_t port)
{
	struct sockaddr_vm to = address(VMADDR_CID_HOST, port);
	int fd = new_socket(0, 60);

	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
		int why = errno;

		close(fd);
		return why;
	}
	conn[nconn++] = fd;
	return 0;
}

static void write_pattern(int fd, uint32_t total)
{
	static uint8_t buf[70000];

	for (uint32_t done = 0, part; done < total; done += part) {
		part = 1 + done % sizeof(buf);
		if (part > total - done)
			part = total - done;
		for (uint32_t i = 0; i < part; i++)
			buf[i] = pattern(done + i);
		if (io_write_full(fd, buf, part) < 0)
			_exit(1);
	}
	_exit(0);
}

/* Sends that many bytes on the last connection and reads them back at the same time. */
static int order_echo(uint32_t total)
{
	static uint8_t buf[30000];
	int fd = conn[nconn - 1], status;
	pid_t pid = fork();

	if (pid == 0)
		write_pattern(fd, total);
	for (uint32_t done = 0; done < total;) {
		ssize_t n =
			recv(fd, buf, total - done < sizeof(buf) ? total - done : sizeof(buf), 0);

		if (n <= 0)
			return n ? errno : ENODATA;
		for (ssize_t i = 0; i < n; i++)
			if (buf[i] != pattern(done + (uint32_t)i))
				return EILSEQ;
		done += (uint32_t)n;
	}
	waitpid(pid, &status, 0);
	return status ? EPIPE : 0;
}

/* A byte there and back so many times: every one leaves a credit update behind. */
static int order_pingpong(uint32_t times)
{
	int rc = 0;

	for (uint32_t i = 0; i < times && !rc; i++) {
		uint8_t out = pattern(i), in = 0;
		int fd = conn[nconn - 1];

		rc = -io_write_full(fd, &out, 1);
		if (!rc)
			rc = -io_read_full(fd, &in, 1);
		if (!rc && in != out)
			rc = EILSEQ;
	}
	return rc;
}

/* Reads from connection n until its end: 0, or the errno that it ended with. */
static int order_end(uint32_t n)
{
	char buf[256];
	ssize_t got;

	do
		got = recv(conn[n], buf, sizeof(buf), 0);
	while (got > 0);
	return got < 0 ? errno : 0;
}

/*
 * Opens so many connections at once (number % 256), each with so many seconds to do it (number /
 * 256), and keeps those that there are in the end: how many, and 256 for each that was reset, 65536
 * for each that got no answer.
 */
static int order_many(uint32_t number)
{
	uint32_t total = number % 256;
	struct sockaddr_vm to = address(VMADDR_CID_HOST, GUEST_EGRESS_PORT);
	struct pollfd p[MAX_CONNS];
	int sum = 0;

	for (uint32_t i = 0; i < total; i++) {
		p[i] = (struct pollfd){
			.fd = new_socket(SOCK_NONBLOCK, (int)(number / 256)),
			.events = POLLOUT,
		};
		if (connect(p[i].fd, (struct sockaddr *)&to, sizeof(to)) < 0 &&
		    errno != EINPROGRESS)
			return -errno;
	}
	for (uint32_t i = 0; i < total; i++) {
		int err = 0;
		socklen_t len = sizeof(err);

		poll(&p[i], 1, -1);
		getsockopt(p[i].fd, SOL_SOCKET, SO_ERROR, &err, &len);
		sum += err == 0 ? 1 : err == ECONNRESET ? 1 << 8 : 1 << 16;
		if (err) {
			close(p[i].fd);
			continue;
		}
		if (io_set_nonblock(p[i].fd, 0) < 0)
			return -errno;
		conn[nconn++] = p[i].fd;
	}
	return sum;
}

/* Closes all connections. */
static int order_close(uint32_t unused)
{
	(void)unused;
	while (nconn)
		close(conn[--nconn]);
	return 0;
}

static const struct {
	char letter;
	int (*fn)(uint32_t number);
} orders[] = {
	{'c', order_connect}, {'e', order_echo}, {'p', order_pingpong},
	{'r', order_end},     {'m', order_many}, {'x', order_close},
};

static void serve(int fd)
{
	uint8_t order[5];

	while (io_read_full(fd, order, sizeof(order)) == 0) {
		uint32_t number;
		int32_t answer = -1;

		memcpy(&number, order + 1, sizeof(number));
		for (size_t i = 0; i < ARRAY_SIZE(orders); i++)
			if (orders[i].letter == order[0])
				answer = orders[i].fn(number);
		if (io_write_full(fd, &answer, sizeof(answer)) < 0)
			break;
	}
}

int main(void)
{
	struct sockaddr_vm at = address(VMADDR_CID_ANY, GUEST_AGENT_PORT);
	int fd;

	mkdir("/dev", 0755);
	if (mount("devtmpfs", "/dev", "devtmpfs", 0, NULL) < 0 || modules_load("/modules") < 0)
		return 1;
	fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(fd, 8) < 0)
		return 1;
	status_port_write(GUEST_STATUS_READY);
	for (;;) {
		int stream = accept(fd, NULL, NULL);

		if (stream < 0)
			continue;
		serve(stream);
		close(stream);
	}
}
