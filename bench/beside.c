/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client beside the daemon: what calls take where the yardstick (forkexec.c)
 * is measured, too, so that one can be divided by the other. Needs libc alone
 * and is linked statically, as that is; it keeps its connections and does no
 * more in a call than a client has to.
 *
 *   beside PORT CREATES EXECS FORKS
 *       of the daemon on 127.0.0.1, whose pool is to be empty. Prints lines of a
 *       name and microseconds:
 *   beside_create_used_us    CREATES times: until a new sandbox has run `pass`
 *   beside_exec_python_us    EXECS times: `pass` in a sandbox that has been used
 *   beside_exec_bash_us      EXECS times: `true` there
 *   beside_fork1_used_us     FORKS times: until the copy of one has run `pass`
 *   beside_fork5_used_us     FORKS times: until all five copies have; all are
 *                            asked before the first answer is read
 *
 * Connections are opened, and copies and sandboxes deleted, outside of these
 * times. Every answer is looked at: the first one that is not as it should be
 * ends the program with a sentence and status 1, and what it has made stays.
 */
#define _GNU_SOURCE
#include "cli/http_reply.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define FAN        5 /* copies of a fork: as many as the figure to reach speaks of */
#define WARM       5 /* calls ahead, which do not count */
#define ROUNDS_MAX 100000
#define ID_SIZE    37 /* "sbx_" and 32 digits */
#define BODY_MAX   65536
#define ANSWER_MS  900000 /* beyond the daemon's own bounds of a call, and of a template */

#define PYTHON "{\"code\": \"pass\", \"language\": \"python\"}"
#define BASH   "{\"code\": \"true\", \"language\": \"bash\"}"
#define LOAD   "{\"code\": \"data = list(range(100000))\", \"language\": \"python\"}"

/* One call at a time; `asked` is what messages name it by. */
struct connection {
	int fd;
	char asked[128];
	struct http_reply reply;
};

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("beside: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static double microseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void tell(const char *name, double us)
{
	printf("beside_%s_us %.1f\n", name, us);
}

/* --- calls ------------------------------------------------------------------------------- */

/* Sends a request: with a body, or without (NULL). */
static void ask(struct connection *c, const char *method, const char *target, const char *body)
{
	char text[512], length[48] = "";
	ssize_t sent;
	int len;

	snprintf(c->asked, sizeof(c->asked), "%s %s", method, target);
	if (body)
		snprintf(length, sizeof(length), "Content-Length: %zu\r\n", strlen(body));
	len = snprintf(text, sizeof(text), "%s %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n%s", method,
		       target, length, body ? body : "");
	if (len >= (int)sizeof(text))
		die("%s: the request is too long", c->asked);
	http_reply_free(&c->reply);
	http_reply_init(&c->reply, BODY_MAX);
	sent = send(c->fd, text, (size_t)len, MSG_NOSIGNAL);
	if (sent != len)
		die("%s: cannot send it: %s", c->asked, sent < 0 ? strerror(errno) : "cut short");
}

/* Takes what has come; true once the answer is whole. */
static bool receive(struct connection *c)
{
	static char data[BODY_MAX];
	ssize_t n = recv(c->fd, data, sizeof(data), 0), used;

	if (n < 0)
		die("%s: cannot read the answer: %s", c->asked, strerror(errno));
	if (n == 0)
		die("%s: the connection ended before the answer did", c->asked);
	used = http_reply_feed(&c->reply, data, (size_t)n);
	if (used < 0)
		die("%s: the answer cannot be used: %s", c->asked, strerror((int)-used));
	if (used < n)
		die("%s: bytes behind the answer", c->asked);
	return http_reply_done(&c->reply);
}

/* Waits for the whole answers of n connections, in whatever order they come. */
static void wait_all(struct connection *c, int n)
{
	struct pollfd fds[FAN];
	int left = n;

	for (int i = 0; i < n; i++)
		fds[i] = (struct pollfd){.fd = c[i].fd, .events = POLLIN};
	while (left) {
		int ready = poll(fds, (nfds_t)n, ANSWER_MS);

		if (ready < 0 && errno == EINTR)
			continue;
		if (ready <= 0)
			die("%s: %s", c->asked, ready ? strerror(errno) : "no answer");
		for (int i = 0; i < n; i++) {
			if (!fds[i].revents || !receive(&c[i]))
				continue;
			fds[i].fd = -1; /* poll() passes over it */
			left--;
		}
	}
}

/* The body of the answer, which must have this status; valid until the next call. */
static const char *answer(struct connection *c, int status)
{
	const char *text;

	if (buf_append(&c->reply.body, "", 1) < 0)
		die("%s: the answer is too long", c->asked);
	text = (const char *)buf_data(&c->reply.body);
	if (c->reply.status != status)
		die("%s: status %d instead of %d: %s", c->asked, c->reply.status, status, text);
	return text;
}

static const char *call(struct connection *c, const char *method, const char *target,
			const char *body, int status)
{
	ask(c, method, target, body);
	wait_all(c, 1);
	return answer(c, status);
}

/* The daemon has answered on it once, so that it is all there when something is measured. */
static void open_connection(struct connection *c, uint16_t port)
{
	const struct sockaddr_in to = {.sin_family = AF_INET,
				       .sin_port = htons(port),
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	*c = (struct connection){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
	if (c->fd < 0 || setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)) < 0 ||
	    connect(c->fd, (const struct sockaddr *)&to, sizeof(to)) < 0)
		die("cannot connect to 127.0.0.1:%u: %s", port, strerror(errno));
	call(c, "GET", "/v1/healthz", NULL, 200);
}

static void close_connection(struct connection *c)
{
	close(c->fd);
	http_reply_free(&c->reply);
}

/* --- sandboxes --------------------------------------------------------------------------- */

/* What follows a beginning; NULL when the text has another one. */
static const char *behind(const char *text, const char *begin)
{
	size_t len = strlen(begin);

	return strncmp(text, begin, len) == 0 ? text + len : NULL;
}

/* An id in quotes at *at (which may be NULL), which is moved behind it. */
static bool take_id(const char **at, char id[static ID_SIZE])
{
	const char *p = *at;

	if (!p || *p != '"' || strspn(p + 1, "sbx_0123456789abcdef") != ID_SIZE - 1 ||
	    p[ID_SIZE] != '"')
		return false;
	memcpy(id, p + 1, ID_SIZE - 1);
	id[ID_SIZE - 1] = '\0';
	*at = p + ID_SIZE + 1;
	return true;
}

/* Sends a request about a sandbox; what: the end of its path. */
static void ask_about(struct connection *c, const char *method, const char *id, const char *what,
		      const char *body)
{
	char target[80];

	snprintf(target, sizeof(target), "/v1/sandboxes/%.*s%s", ID_SIZE - 1, id, what);
	ask(c, method, target, body);
}

static void create_sandbox(struct connection *c, char id[static ID_SIZE])
{
	const char *text = call(c, "POST", "/v1/sandboxes", "{}", 200);
	const char *at = behind(text, "{\"id\":");

	if (!take_id(&at, id))
		die("%s: no sandbox: %s", c->asked, text);
}

static void delete_sandbox(struct connection *c, const char *id)
{
	ask_about(c, "DELETE", id, "", NULL);
	wait_all(c, 1);
	answer(c, 204);
}

/* Copies of a sandbox: n of them, or it is an error. */
static void fork_sandbox(struct connection *c, const char *id, int n, char ids[][ID_SIZE])
{
	const char *text, *at;
	bool ok = true;
	char body[32];

	snprintf(body, sizeof(body), "{\"n\": %d}", n);
	ask_about(c, "POST", id, "/fork", body);
	wait_all(c, 1);
	text = answer(c, 200);
	at = behind(text, "{\"children\":[");
	for (int i = 0; ok && i < n; i++)
		ok = take_id(&at, ids[i]) && *at++ == (i < n - 1 ? ',' : ']');
	if (!ok)
		die("%s: not %d copies: %s", c->asked, n, text);
}

/* It has ended well, and has written nothing: its end is the one line of the answer. */
static void check_exec(struct connection *c)
{
	const char *text = answer(c, 200), *end = strchr(text, '\n');

	if (!behind(text, "{\"type\":\"exit\",\"data\":0,") || !end || end[1] != '\0')
		die("%s: not the end of a call that went well: %s", c->asked, text);
}

static void exec(struct connection *c, const char *id, const char *body)
{
	ask_about(c, "POST", id, "/exec", body);
	wait_all(c, 1);
	check_exec(c);
}

/* --- what is measured -------------------------------------------------------------------- */

static void measure_creates(struct connection *c, int n)
{
	char id[ID_SIZE];

	/* The first one may have to wait for its template. */
	for (int i = -1; i < n; i++) {
		double start = microseconds();

		create_sandbox(c, id);
		exec(c, id, PYTHON);
		if (i >= 0)
			tell("create_used", microseconds() - start);
		delete_sandbox(c, id);
	}
}

static void measure_execs(struct connection *c, const char *name, const char *body, int n)
{
	char id[ID_SIZE];

	create_sandbox(c, id);
	for (int i = -WARM; i < n; i++) {
		double start = microseconds();

		exec(c, id, body);
		if (i >= 0)
			tell(name, microseconds() - start);
	}
	delete_sandbox(c, id);
}

/* c has a connection for each copy; the first one is that of all else, too. */
static void measure_forks(struct connection *c, const char *name, int copies, int n)
{
	char parent[ID_SIZE], ids[FAN][ID_SIZE];

	create_sandbox(c, parent);
	exec(c, parent, LOAD);
	for (int i = 0; i < n; i++) {
		double start = microseconds(), took;

		fork_sandbox(c, parent, copies, ids);
		for (int k = 0; k < copies; k++)
			ask_about(&c[k], "POST", ids[k], "/exec", PYTHON);
		wait_all(c, copies);
		took = microseconds() - start;
		for (int k = 0; k < copies; k++)
			check_exec(&c[k]);
		tell(name, took);
		for (int k = 0; k < copies; k++)
			delete_sandbox(c, ids[k]);
		/* As bench/run.py does it: the parent goes on between forks. */
		exec(c, parent, PYTHON);
	}
	delete_sandbox(c, parent);
}

/* A number of 0 to max; -1 when it is none. */
static int parse_number(const char *text, int max)
{
	char *end;
	long n = strtol(text, &end, 10);

	return *text && !*end && n >= 0 && n <= max ? (int)n : -1;
}

int main(int argc, char **argv)
{
	int port = argc == 5 ? parse_number(argv[1], UINT16_MAX) : -1, rounds[3] = {-1, -1, -1};
	struct connection c[FAN];

	for (int i = 0; argc == 5 && i < 3; i++)
		rounds[i] = parse_number(argv[2 + i], ROUNDS_MAX);
	if (port <= 0 || rounds[0] < 0 || rounds[1] < 0 || rounds[2] < 0) {
		fputs("usage: beside PORT CREATES EXECS FORKS\n", stderr);
		return 2;
	}
	open_connection(&c[0], (uint16_t)port);
	measure_creates(c, rounds[0]);
	measure_execs(c, "exec_python", PYTHON, rounds[1]);
	measure_execs(c, "exec_bash", BASH, rounds[1]);
	measure_forks(c, "fork1_used", 1, rounds[2]);
	/* Only now: who is silent for long loses his connection. */
	for (int i = 1; i < FAN; i++)
		open_connection(&c[i], (uint16_t)port);
	measure_forks(c, "fork5_used", FAN, rounds[2]);
	for (int i = 0; i < FAN; i++)
		close_connection(&c[i]);
	return 0;
}
