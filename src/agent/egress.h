/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Egress: whether this sandbox was granted some, and what follows from that.
 * While it is on, two ports of the loopback lead to the host's proxy
 * (relay.h), programs are told of them by their environment, and files in
 * run_dir by those that are asked for there. While it is off none of this
 * exists: the ports refuse, and nothing is written, read or held.
 *
 * What may be reached is decided by the host for each connection. Nothing here
 * is a boundary: root of the guest can do as he likes with all of it.
 *
 * The relay is started with listening sockets that belong to the agent, so
 * that a connection finds them before it runs, and while a dead one is
 * replaced. Its group is one of those that a FREEZE stops: between that and the
 * end of a renewal nothing is carried, not even what a client of the original
 * left in a queue. The original's goes on afterwards with the next byte.
 *
 * Thread: the loop's. fork: a renewal kills the copy's relay, whose connections
 * are the original's, and says whether it gets one of its own.
 */
#pragma once

#include "agent/alarm.h"
#include "agent/reap.h"
#include "agent/request.h"
#include "agent/user.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct agent;
struct cgroup;
struct stream;

#define EGRESS_ENV_MAX 32

struct egress_config {
	uint16_t http_port, socks_port;
	const char *host; /* argument of the relay: where it connects to; NULL = the host's vsock */
};

/* Processes of one mode all have the same environment. */
enum egress_mode {
	EGRESS_OFF,
	EGRESS_ON,
	EGRESS_INTERCEPTS, /* and there is a CA to be trusted */
};

struct egress {
	struct agent *agent;
	struct egress_config cfg;
	const char *etc_dir, *run_dir;
	enum egress_mode mode;
	char *ca;                  /* PEM; NULL = none */
	char *env[EGRESS_ENV_MAX]; /* "NAME=value", owned */
	size_t nenv;
	struct user user; /* of the relay */
	int listener[2];  /* -1 = closed */
	struct cgroup *cgroup;
	struct reap_child child; /* pid 0: it does not run */
	struct alarm again;      /* to start it again */
	uint64_t start_ns, delay_ns;
};

void egress_init(struct egress *e, struct agent *a, const struct egress_config *cfg,
		 const char *etc_dir, const char *run_dir);
/* Makes it so. *r stays the caller's. On an error it is off. */
__must_check int egress_set(struct egress *e, const struct request_egress *r, struct err *err);
/* The same in a machine that has just become one of its own: no connection stays. */
__must_check int egress_renew(struct egress *e, const struct request_egress *r, struct err *err);
/* EGRESS. *r stays the caller's. */
void egress_request(struct stream *s, const struct request_egress *r);

/*
 * env_build() with what egress adds in front of extra: there nothing that extra has in any case of
 * letters, for HTTPS_PROXY and https_proxy are one thing to those who read them.
 */
char **egress_env_build(const struct egress *e, const struct user *u, char *const *extra, size_t n);
/* For a session that has that of another mode: {"env": {name: value}}. NULL when out of memory. */
json_t *egress_session_env(const struct egress *e);

/* In egress_files.c: environment and files with e->ca, in the place of what there is; and none of
   them, which is harmless when there are none. */
__must_check int egress_files_write(struct egress *e, struct err *err);
void egress_files_remove(struct egress *e);
