/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Terminal modes, size and the escape. File-level state: the mode to go back
 * to in a handler of fatal signals, which has no argument to find it by;
 * written only while that handler is not installed.
 */
#include "cli/terminal.h"

#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static struct terminal fault_terminal;

/* Our own faults. All other signals are taken care of by the session. */
static const int faults[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE};

/* tcsetattr() and raise() may be called here; SA_RESETHAND has put the default back. */
static void on_fault(int sig)
{
	tcsetattr(fault_terminal.fd, TCSANOW, &fault_terminal.before);
	raise(sig);
}

static void watch_faults(bool on)
{
	struct sigaction sa = {.sa_handler = on ? on_fault : SIG_DFL,
			       .sa_flags = on ? (int)SA_RESETHAND : 0};

	for (size_t i = 0; i < ARRAY_SIZE(faults); i++)
		sigaction(faults[i], &sa, NULL);
}

int terminal_raw(struct terminal *t, int fd)
{
	struct termios raw;

	*t = (struct terminal){.fd = fd};
	if (tcgetattr(fd, &t->before) < 0)
		return -errno;
	raw = t->before;
	cfmakeraw(&raw);
	fault_terminal = *t;
	watch_faults(true);
	/* What has been typed ahead stays. */
	if (tcsetattr(fd, TCSADRAIN, &raw) < 0) {
		int e = errno;

		watch_faults(false);
		return -e;
	}
	t->raw = true;
	return 0;
}

void terminal_again(const struct terminal *t)
{
	struct termios raw = t->before;

	cfmakeraw(&raw);
	if (t->raw)
		tcsetattr(t->fd, TCSADRAIN, &raw);
}

void terminal_restore(struct terminal *t)
{
	if (!t->raw)
		return;
	/* Not TCSADRAIN: a terminal that takes no output must not keep us. */
	while (tcsetattr(t->fd, TCSANOW, &t->before) < 0 && errno == EINTR)
		;
	watch_faults(false);
	t->raw = false;
}

static unsigned clamp_size(unsigned v, unsigned none)
{
	if (v == 0)
		return none;
	return v < TERMINAL_SIZE_MAX ? v : TERMINAL_SIZE_MAX;
}

struct terminal_size terminal_get_size(int fd)
{
	struct winsize w = {0};

	if (ioctl(fd, TIOCGWINSZ, &w) < 0)
		w = (struct winsize){0};
	return (struct terminal_size){.cols = clamp_size(w.ws_col, 80),
				      .rows = clamp_size(w.ws_row, 24)};
}

int terminal_open_output(int fd)
{
	char path[32];
	struct stat st;
	int copy;

	if (fstat(fd, &st) < 0)
		return -errno;
	/* A file would be written from its start again, a socket cannot be opened. */
	if (isatty(fd) || S_ISFIFO(st.st_mode)) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		copy = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		if (copy >= 0)
			return copy;
	}
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return copy < 0 ? -errno : copy;
}

size_t terminal_escape_scan(struct terminal_escape *e, uint8_t *out, const uint8_t *in, size_t len,
			    bool *leave)
{
	size_t n = 0;

	*leave = false;
	for (size_t i = 0; i < len; i++) {
		uint8_t c = in[i];

		if (e->state == ESCAPE_LINE_START && c == '~') {
			e->state = ESCAPE_TILDE;
			continue;
		}
		if (e->state == ESCAPE_TILDE) {
			if (c == '.') {
				*leave = true;
				return n;
			}
			out[n++] = '~';
			if (c == '~') {
				e->state = ESCAPE_IN_LINE;
				continue;
			}
		}
		out[n++] = c;
		e->state = c == '\r' || c == '\n' ? ESCAPE_LINE_START : ESCAPE_IN_LINE;
	}
	return n;
}
