/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SCM_RIGHTS in one place. Invariant: a descriptor that came in is either
 * handed to the caller or closed, whatever else is wrong with the message.
 */
#define _GNU_SOURCE
#include "lib/fdpass.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

union fdpass_ctl {
	struct cmsghdr align;
	char buf[CMSG_SPACE(FDPASS_MAX * sizeof(int))];
};

static int fdpass_send_plain(int sock, const void *buf, size_t len)
{
	ssize_t n;

	do
		n = send(sock, buf, len, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EMSGSIZE;
}

int fdpass_send(int sock, const void *buf, size_t len, const int *fds, size_t nfds)
{
	union fdpass_ctl ctl = {0};
	struct iovec iov = {.iov_base = (void *)(size_t)buf, .iov_len = len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl.buf};
	struct cmsghdr *c;
	ssize_t n;

	if (nfds > FDPASS_MAX)
		return -EINVAL;
	/* Without descriptors by another system call: the jail of a VMM knows only that one. */
	if (nfds == 0)
		return fdpass_send_plain(sock, buf, len);
	m.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
	c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
	memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	do
		n = sendmsg(sock, &m, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EMSGSIZE;
}

static void fdpass_collect(struct msghdr *m, int *fds, size_t *nfds, size_t max, bool *overflow)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (*nfds < max) {
				fds[(*nfds)++] = fd;
			} else {
				close(fd);
				*overflow = true;
			}
		}
	}
}

ssize_t fdpass_recv(int sock, void *buf, size_t len, int *fds, size_t *nfds, int flags)
{
	union fdpass_ctl ctl;
	struct iovec iov = {.iov_base = buf, .iov_len = len};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = ctl.buf,
			   .msg_controllen = sizeof(ctl.buf)};
	size_t max = *nfds;
	bool overflow = false;
	ssize_t n;

	*nfds = 0;
	do
		n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC | flags);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	fdpass_collect(&m, fds, nfds, max, &overflow);
	if (overflow || (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		/* There was room in the list for one more: it is the process that has none. */
		bool full = *nfds < FDPASS_MAX && !(m.msg_flags & MSG_TRUNC) && !overflow;

		while (*nfds)
			close(fds[--*nfds]);
		return full ? -EMFILE : -EMSGSIZE;
	}
	return n;
}

int fdpass_peek_pid(int sock, pid_t *pid)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(struct ucred))];
	} ctl;
	char byte;
	struct iovec iov = {.iov_base = &byte, .iov_len = 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = ctl.buf,
			   .msg_controllen = sizeof(ctl.buf)};
	struct cmsghdr *c;
	struct ucred who;
	ssize_t n;

	do
		n = recvmsg(sock, &m, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return n < 0 ? -errno : 0;
	c = CMSG_FIRSTHDR(&m);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_CREDENTIALS ||
	    c->cmsg_len != CMSG_LEN(sizeof(who)))
		return -EPROTO;
	memcpy(&who, CMSG_DATA(c), sizeof(who));
	*pid = who.pid;
	return 1;
}
