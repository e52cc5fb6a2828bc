/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both ends of the bench of egress (bench/egress.py): a small HTTP server, and
 * a client that asks it over and over, straight or through a proxy. One thread
 * each. Linked statically, so that it runs in a guest as it does on the host.
 *
 *   egressload serve [PORT]
 *       Listens on 127.0.0.1 (0 or none: any free port), prints the port.
 *       "GET .../N" is answered with N bytes; connections are kept.
 *   egressload load WHERE WAY HOST:PORT CONNECTIONS BYTES SECONDS [fresh]
 *       WHERE  tcp:PORT of 127.0.0.1, or unix:PATH: what is connected to
 *       WAY    direct; http: requests in absolute form; tunnel: CONNECT first
 *       Each connection asks for BYTES bytes, and again when it has them; fresh:
 *       on a new connection each time. Prints one line: requests, seconds, bytes,
 *       p50, p95, p99 and largest latency in microseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BUFFER      65536
#define SAMPLES     4000000u
#define CONNECTIONS 1024u

static void __attribute__((noreturn)) die(const char *what)
{
	fprintf(stderr, "egressload: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void watch(int epoll, int fd, uint32_t events, void *what, bool again)
{
	struct epoll_event e = {.events = events, .data.ptr = what};

	if (epoll_ctl(epoll, again ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &e) < 0)
		die("epoll_ctl");
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* not of a unix socket */
}

/* --- server --- */

struct client {
	int fd;
	char in[8192];
	size_t have;
	uint64_t body; /* bytes of the answer's body that are still to be sent */
	char head[128];
	size_t head_len, head_sent;
};

static char filler[BUFFER];

/* The request is whole: its answer. The number is behind the last slash of the target. */
static void answer(struct client *c, const char *end)
{
	const char *target = memchr(c->in, ' ', c->have), *stop, *slash;

	stop = target ? memchr(target + 1, ' ', (size_t)(end - target)) : NULL;
	slash = stop ? memrchr(target, '/', (size_t)(stop - target)) : NULL;
	c->body = slash ? strtoull(slash + 1, NULL, 10) : 0;
	c->head_len = (size_t)snprintf(c->head, sizeof(c->head),
				       "HTTP/1.1 200 OK\r\nContent-Length: %llu\r\n\r\n",
				       (unsigned long long)c->body);
	c->head_sent = 0;
	c->have -= (size_t)(end - c->in);
	memmove(c->in, end, c->have);
}

/* Sends what there is: 1 all of it, 0 later, -1 the client is gone. A small answer is one segment.
 */
static int send_answer(struct client *c)
{
	static char first[sizeof(c->head) + 4096];

	while (c->head_sent < c->head_len) {
		size_t n = c->head_len - c->head_sent, more = c->body < 4096 ? c->body : 4096;
		ssize_t sent;

		memcpy(first, c->head + c->head_sent, n);
		memset(first + n, 'x', more);
		sent = send(c->fd, first, n + more, MSG_NOSIGNAL);
		if (sent < 0)
			return errno == EAGAIN ? 0 : -1;
		c->head_sent += (size_t)sent < n ? (size_t)sent : n;
		c->body -= (size_t)sent > n ? (size_t)sent - n : 0;
	}
	while (c->body) {
		ssize_t sent =
			send(c->fd, filler, c->body < BUFFER ? c->body : BUFFER, MSG_NOSIGNAL);

		if (sent < 0)
			return errno == EAGAIN ? 0 : -1;
		c->body -= (uint64_t)sent;
	}
	return 1;
}

/* Reads and answers as far as it goes; false when it is over. */
static bool serve_client(struct client *c)
{
	for (;;) {
		char *end;
		ssize_t n;
		int rc = send_answer(c);

		if (rc <= 0)
			return rc == 0;
		end = memmem(c->in, c->have, "\r\n\r\n", 4);
		if (end) {
			answer(c, end + 4);
			continue;
		}
		n = recv(c->fd, c->in + c->have, sizeof(c->in) - c->have, 0);
		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		c->have += (size_t)n;
	}
}

static int serve(const char *port)
{
	struct sockaddr_in at = {.sin_family = AF_INET,
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				 .sin_port = htons((uint16_t)atoi(port))};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	socklen_t len = sizeof(at);

	memset(filler, 'x', sizeof(filler));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&at, len) < 0 || listen(listener, 1024) < 0 ||
	    getsockname(listener, (struct sockaddr *)&at, &len) < 0)
		die("listen");
	watch(epoll, listener, EPOLLIN, NULL, false);
	printf("%u\n", ntohs(at.sin_port));
	fflush(stdout);
	for (;;) {
		struct epoll_event e[64];
		int n = epoll_wait(epoll, e, 64, -1);

		for (int i = 0; i < n; i++) {
			struct client *c = e[i].data.ptr;

			if (c) {
				if (!serve_client(c)) {
					close(c->fd);
					free(c);
				}
				continue;
			}
			c = calloc(1, sizeof(*c));
			c->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
			if (c->fd < 0) {
				free(c);
				continue;
			}
			no_delay(c->fd);
			watch(epoll, c->fd, EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, c, false);
		}
	}
}

/* --- client --- */

enum way { DIRECT, HTTP, TUNNEL };

struct asker {
	int fd;
	bool tunnelled; /* the CONNECT is answered */
	bool in_body;
	char head[4096];
	size_t have;
	uint64_t left; /* of the body */
	double began;
};

struct load {
	const char *where, *target;
	enum way way;
	bool fresh;
	uint64_t bytes, got;
	int epoll;
	double until;
	float *latency; /* microseconds */
	size_t samples;
};

static int dial(const char *where)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	bool tcp = strncmp(where, "tcp:", 4) == 0;
	int fd = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	in.sin_port = htons((uint16_t)atoi(where + 4));
	if (!tcp)
		snprintf(un.sun_path, sizeof(un.sun_path), "%s", where + 5);
	if (fd < 0 || (tcp ? connect(fd, (struct sockaddr *)&in, sizeof(in))
			   : connect(fd, (struct sockaddr *)&un, sizeof(un))) < 0)
		die(where);
	if (tcp)
		no_delay(fd);
	return fd;
}

/* Requests are small: they fit into an empty socket. */
static void ask(const struct load *l, struct asker *a)
{
	char text[1024];
	int n;

	if (l->way == TUNNEL && !a->tunnelled)
		n = snprintf(text, sizeof(text), "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n",
			     l->target, l->target);
	else
		n = snprintf(text, sizeof(text), "GET %s%s/%llu HTTP/1.1\r\nHost: %s\r\n\r\n",
			     l->way == HTTP ? "http://" : "", l->way == HTTP ? l->target : "",
			     (unsigned long long)l->bytes, l->target);
	a->have = 0;
	a->in_body = false;
	if (send(a->fd, text, (size_t)n, MSG_NOSIGNAL) != n)
		die("send");
}

static void begin(struct load *l, struct asker *a)
{
	a->began = now();
	if (a->fd < 0) {
		a->fd = dial(l->where);
		a->tunnelled = false;
		watch(l->epoll, a->fd, EPOLLIN, a, false);
	}
	ask(l, a);
}

/* The head of a reply is whole; returns the bytes of body that came with it. */
static size_t take_head(const struct load *l, struct asker *a, char *end)
{
	bool connected = l->way == TUNNEL && !a->tunnelled;
	char *length;

	*end = '\0';
	if (strncmp(a->head, "HTTP/1.1 200", 12) != 0) {
		fprintf(stderr, "egressload: the answer is %s\n", a->head);
		exit(1);
	}
	length = strcasestr(a->head, "content-length:");
	a->left = length && !connected ? strtoull(length + 15, NULL, 10) : 0;
	if (!connected && a->left != l->bytes) {
		fprintf(stderr, "egressload: the answer has another length\n");
		exit(1);
	}
	a->in_body = true;
	return a->have - (size_t)(end + 4 - a->head);
}

/* A whole reply is there. */
static void finished(struct load *l, struct asker *a)
{
	double at = now();

	if (l->way == TUNNEL && !a->tunnelled) {
		a->tunnelled = true;
		ask(l, a);
		return;
	}
	if (l->samples < SAMPLES)
		l->latency[l->samples++] = (float)((at - a->began) * 1e6);
	if (l->fresh) {
		close(a->fd);
		a->fd = -1;
	}
	if (at < l->until)
		begin(l, a);
	else if (a->fd >= 0) {
		close(a->fd);
		a->fd = -1;
	}
}

static void take(struct load *l, struct asker *a)
{
	static char waste[4 * BUFFER];
	ssize_t n = a->in_body ? recv(a->fd, waste, sizeof(waste), MSG_DONTWAIT)
			       : recv(a->fd, a->head + a->have, sizeof(a->head) - 1 - a->have,
				      MSG_DONTWAIT);
	char *end;

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		errno = n == 0 ? ECONNRESET : errno;
		die("the connection ended");
	}
	if (!a->in_body) {
		a->have += (size_t)n;
		a->head[a->have] = '\0';
		end = strstr(a->head, "\r\n\r\n");
		if (!end)
			return;
		n = (ssize_t)take_head(l, a, end);
	}
	a->left -= (uint64_t)n;
	l->got += (uint64_t)n;
	if (a->left == 0)
		finished(l, a);
}

static int by_value(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

static double at_rank(const struct load *l, double p)
{
	size_t i = (size_t)(p * (double)l->samples);

	return l->latency[i < l->samples ? i : l->samples - 1];
}

static int load(char **v, bool fresh)
{
	static struct asker askers[CONNECTIONS];
	struct load l = {.where = v[0],
			 .target = v[2],
			 .fresh = fresh,
			 .bytes = strtoull(v[4], NULL, 10),
			 .epoll = epoll_create1(EPOLL_CLOEXEC),
			 .latency = malloc(SAMPLES * sizeof(float))};
	unsigned int count = (unsigned int)atoi(v[3]), open = count;
	double start = now(), end;

	l.way = strcmp(v[1], "http") == 0 ? HTTP : strcmp(v[1], "tunnel") == 0 ? TUNNEL : DIRECT;
	l.until = start + atof(v[5]);
	if (count == 0 || count > CONNECTIONS || !l.latency)
		return 2;
	for (unsigned int i = 0; i < count; i++) {
		askers[i].fd = -1;
		begin(&l, &askers[i]);
	}
	while (open) {
		struct epoll_event e[64];
		int n = epoll_wait(l.epoll, e, 64, 60000);

		if (n <= 0) {
			errno = n == 0 ? ETIMEDOUT : errno;
			die("waiting");
		}
		for (int i = 0; i < n; i++) {
			struct asker *a = e[i].data.ptr;

			if (a->fd < 0)
				continue;
			take(&l, a);
			open -= a->fd < 0;
		}
	}
	end = now();
	qsort(l.latency, l.samples, sizeof(float), by_value);
	printf("%zu %.6f %llu %.1f %.1f %.1f %.1f\n", l.samples, end - start,
	       (unsigned long long)l.got, at_rank(&l, 0.5), at_rank(&l, 0.95), at_rank(&l, 0.99),
	       at_rank(&l, 1));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc >= 2 && strcmp(argv[1], "serve") == 0)
		return serve(argc > 2 ? argv[2] : "0");
	if (argc >= 8 && strcmp(argv[1], "load") == 0)
		return load(argv + 2, argc > 8 && strcmp(argv[8], "fresh") == 0);
	fprintf(stderr,
		"usage: egressload serve [PORT]\n"
		"       egressload load WHERE WAY HOST:PORT CONNECTIONS BYTES SECONDS [fresh]\n");
	return 2;
}
