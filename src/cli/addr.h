/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The address on which the API is offered: its text form, the rule which
 * addresses may be used without keys, and the test whether the port is free.
 * Reads the environment in addr_has_keys() and addr_check_keys() only; no state.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

#define ADDR_DEFAULT "127.0.0.1:7070"

struct addr {
	struct sockaddr_storage sa;
	socklen_t len;
	char text[80]; /* HOST:PORT as it is printed */
	char host[64]; /* without port and brackets */
	uint16_t port;
	bool ipv6;
	bool loopback;
};

/* HOST:PORT with an IPv4 address, an IPv6 address in brackets, or localhost. Port 0: any free one.
 */
__must_check int addr_parse(struct addr *a, const char *text, struct err *err);

/* Whether PODFLARE_API_KEYS has an entry that is more than blanks. */
bool addr_has_keys(void);

/* An address that others can reach needs keys, or the explicit word that none are wanted. */
__must_check int addr_check_keys(const struct addr *a, struct err *err);

/*
 * Takes the port without listening on it: a descriptor to keep until the
 * service has ended. With port 0 a free one is chosen and written into a.
 * Another program that wants to listen on it, whosever it is, gets "address in use".
 */
__must_check int addr_reserve(struct addr *a, int *fd, struct err *err);

/*
 * From here on one program that sets SO_REUSEADDR (as QEMU does) may listen beside the descriptor;
 * so it is called when that is about to. 0 or -errno.
 */
__must_check int addr_let_in(int fd);
