/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One message with descriptors over a UNIX socket (SCM_RIGHTS).
 * Any thread. fork: no state.
 */
#pragma once

#include "lib/cleanup.h"

#include <stddef.h>
#include <sys/types.h>

#define FDPASS_MAX 8

/* Sends one message; descriptors stay open here. 0 or -errno (-EAGAIN on a full socket). */
__must_check int fdpass_send(int sock, const void *buf, size_t len, const int *fds, size_t nfds);

/*
 * Receives one message of at most len bytes: its length, 0 at EOF, or -errno.
 * fds[0..*nfds) become the caller's, close-on-exec. A message or descriptor
 * list that did not fit is refused whole with -EMSGSIZE (what came is closed).
 * -EMFILE: this process has too many descriptors for those of the message; they
 * are closed, and buf has what came.
 * flags: MSG_DONTWAIT or 0.
 */
ssize_t fdpass_recv(int sock, void *buf, size_t len, int *fds, size_t *nfds, int flags);

/*
 * Who has sent the message that waits, by the kernel's word (SO_PASSCRED, which must have been set
 * when it was sent): 1 and *pid, 0 when the other side has closed, or -errno. The message stays,
 * and no descriptor of it is taken.
 */
int fdpass_peek_pid(int sock, pid_t *pid);
