/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon that a client verb talks to: its URL and key, from the variables
 * that the SDK reads, and a connection to it. Plain HTTP only: there is no TLS
 * here, and an https address is refused with a sentence that says what to do.
 * No state. fork: nothing; descriptors are close-on-exec.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <stdint.h>

#define ENDPOINT_DEFAULT "http://127.0.0.1:7070"

struct endpoint {
	char host[256]; /* a name or an address, without brackets */
	char port[6];
	char authority[272]; /* as the Host header has it */
	char url[288];       /* as messages have it */
	char key[512];       /* "" = none is sent */
};

/* http://HOST[:PORT][/], the scheme may be left out. -EINVAL or -EPROTONOSUPPORT with a sentence.
 */
__must_check int endpoint_parse(struct endpoint *e, const char *url, struct err *err);

/* Says so on stderr when the key goes to another machine, readable for all on the way. */
void endpoint_tell_key(const struct endpoint *e);

/* From PODFLARE_HOSTD_URL, else PODFLARE_HOST, else the default; the key is PODFLARE_API_KEY. */
__must_check int endpoint_from_env(struct endpoint *e, struct err *err);

/*
 * A non-blocking connection, which notices a peer that is gone within a minute
 * or so. -ECANCELED (without a sentence of use) when stop_fd becomes readable.
 */
__must_check int endpoint_connect(const struct endpoint *e, int stop_fd, int *fd, struct err *err);

/*
 * Waits until fd has one of the events: 1; 0 at the deadline (CLOCK_MONOTONIC,
 * 0 = none); -ECANCELED when stop_fd (-1 = none) is readable first; -errno.
 */
__must_check int endpoint_wait(int fd, short events, int stop_fd, uint64_t deadline_ns);
