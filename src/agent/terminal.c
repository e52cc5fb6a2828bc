/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pseudo-terminals. Names are avoided: the other end is asked of the master itself, so that nothing
 * which the user mounts on /dev/pts can come in between. Stateless.
 */
#define _GNU_SOURCE
#include "agent/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

/* As login programs make it; the group that may write to it is devpts' own. */
#define TERMINAL_MODE 0620

void terminal_resize(int master, const struct terminal_size *size)
{
	struct winsize ws = {
		.ws_col = (unsigned short)size->cols,
		.ws_row = (unsigned short)size->rows,
	};

	/* Fails only for what is no terminal. */
	ioctl(master, TIOCSWINSZ, &ws);
}

static int terminal_set_up(const struct user *u, int slave)
{
	struct termios t;

	if (u->change && fchown(slave, u->uid, (gid_t)-1) < 0)
		return -errno;
	if (fchmod(slave, TERMINAL_MODE) < 0 || tcgetattr(slave, &t) < 0)
		return -errno;
	/* Erasing takes whole characters. */
	t.c_iflag |= IUTF8;
	return tcsetattr(slave, TCSANOW, &t) < 0 ? -errno : 0;
}

int terminal_open(const struct user *u, const struct terminal_size *size, int *master, int *slave)
{
	_cleanup_fd int m = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	_cleanup_fd int s = -1;
	int unlock = 0, rc;

	if (m < 0)
		return -errno;
	if (ioctl(m, TIOCSPTLCK, &unlock) < 0)
		return -errno;
	s = ioctl(m, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (s < 0)
		return -errno;
	rc = terminal_set_up(u, s);
	if (rc < 0)
		return rc;
	terminal_resize(m, size);
	*master = take_fd(&m);
	*slave = take_fd(&s);
	return 0;
}
