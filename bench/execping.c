/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least client there can be of one kind of call, beside the daemon: a cell
 * `pass` in a sandbox, over one connection, from the first byte of the request
 * to the last one of the answer. What bench/run.py measures of the same call has
 * the SDK in it and, in the emulated host, the way into it.
 *
 *   execping PORT SANDBOX N    of the daemon on 127.0.0.1; prints the time of
 *                              each call in microseconds, a line each
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WARM 5 /* calls ahead, which do not count */

static double microseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int open_connection(int port)
{
	const struct sockaddr_in to = {.sin_family = AF_INET,
				       .sin_port = htons((uint16_t)port),
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)) < 0 ||
	    connect(fd, (const struct sockaddr *)&to, sizeof(to)) < 0) {
		perror("execping");
		exit(1);
	}
	return fd;
}

/* An answer in chunks, whose last one is empty; false when the connection ends before. */
static bool read_answer(int fd, char *buf, size_t size)
{
	static const char end[] = "\r\n0\r\n\r\n";
	size_t len = 0;

	while (len < size - 1) {
		ssize_t n = read(fd, buf + len, size - 1 - len);

		if (n <= 0)
			return false;
		len += (size_t)n;
		buf[len] = '\0';
		if (len >= strlen(end) && strcmp(buf + len - strlen(end), end) == 0)
			return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	static const char body[] = "{\"code\": \"pass\", \"language\": \"python\"}";
	int port = argc == 4 ? atoi(argv[1]) : 0, n = argc == 4 ? atoi(argv[3]) : 0;
	char request[512], answer[8192];
	int len, fd;

	if (port <= 0 || n <= 0) {
		fputs("usage: execping PORT SANDBOX N\n", stderr);
		return 2;
	}
	fd = open_connection(port);
	len = snprintf(request, sizeof(request),
		       "POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
		       "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
		       argv[2], port, strlen(body), body);
	if (len >= (int)sizeof(request)) {
		fputs("execping: that is no id of a sandbox\n", stderr);
		return 2;
	}
	for (int i = -WARM; i < n; i++) {
		double start = microseconds();

		if (write(fd, request, (size_t)len) != len ||
		    !read_answer(fd, answer, sizeof(answer)) ||
		    strncmp(answer, "HTTP/1.1 200 ", 13) != 0 ||
		    !strstr(answer, "\"exit_code\":0")) {
			fprintf(stderr, "execping: the call failed:\n%s\n", answer);
			return 1;
		}
		if (i >= 0)
			printf("%.1f\n", microseconds() - start);
	}
	close(fd);
	return 0;
}
