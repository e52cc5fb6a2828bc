/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent's own objects as an ordinary process behind a UNIX socket, for
 * tests that need no VM: no boot, and of a renewal the kernel's part (random
 * numbers, clock, name) is recorded instead of done. Everything else is the code of the guest.
 *
 * As root it acts as uid 1000, as it does in a guest; otherwise as the caller.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/relay.h"
#include "agent/renew.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Bytes that begin with "refuse" are. */
int renew_random(struct renew_kept *k, const uint8_t entropy[REQUEST_ENTROPY], struct err *err)
{
	(void)k;
	if (memcmp(entropy, "refuse", 6) == 0)
		return err_text(err, EPERM, "refused for the test");
	fprintf(stderr, "random entropy=");
	for (int i = 0; i < REQUEST_ENTROPY; i++)
		fprintf(stderr, "%02x", entropy[i]);
	fprintf(stderr, "\n");
	return 0;
}

int renew_kernel(struct renew_kept *k, const struct request_renew *r, struct err *err)
{
	(void)k;
	if (strcmp(r->hostname, "refuse") == 0)
		return err_text(err, EPERM, "refused for the test");
	fprintf(stderr, "renew realtime_ns=%lld hostname=%s entropy=", (long long)r->realtime_ns,
		r->hostname);
	for (int i = 0; i < REQUEST_ENTROPY; i++)
		fprintf(stderr, "%02x", r->entropy[i]);
	fprintf(stderr, "\n");
	return 0;
}

int renew_boot_id(struct renew_kept *k, const char *run_dir, const struct request_renew *r,
		  struct err *err)
{
	(void)k;
	int rc = renew_write(run_dir, "boot-id", r->boot_id);

	return rc < 0 ? err_set(err, -rc, "boot id") : 0;
}

static int harness_user(struct user *u, const char *home, struct err *err)
{
	*u = (struct user){.name = "user", .uid = geteuid(), .gid = getegid()};
	snprintf(u->home, sizeof(u->home), "%s", home);
	if (geteuid() == 0) {
		u->change = true;
		u->uid = u->gid = u->groups[0] = 1000;
		u->ngroups = 1;
		if (setgroups(u->ngroups, u->groups) < 0)
			return err_set(err, errno, "setgroups");
	}
	return 0;
}

static int harness_listen(const char *path, struct err *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	_cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, 64) < 0)
		return err_set(err, errno, "cannot listen on %s", path);
	return take_fd(&fd);
}

/* In place of the host's vsock: a UNIX socket. */
static int harness_relay(const char *path)
{
	struct sockaddr_un host = {.sun_family = AF_UNIX};

	snprintf(host.sun_path, sizeof(host.sun_path), "%s", path);
	return relay_main((const struct sockaddr *)&host, sizeof(host));
}

/* HARNESS_EGRESS=HTTP_PORT,SOCKS_PORT,SOCKET: where the relay listens and connects to. */
static void harness_egress(struct egress_config *cfg)
{
	static char host[108];
	const char *text = getenv("HARNESS_EGRESS");
	unsigned http, socks;

	if (!text || sscanf(text, "%u,%u,%107s", &http, &socks, host) != 3)
		return;
	*cfg = (struct egress_config){(uint16_t)http, (uint16_t)socks, host};
}

/* harness SOCKET CGROUP|- REPL_SCRIPT HOME ETC RUN [IMAGE UPPER ROOT] */
int main(int argc, char **argv)
{
	static struct agent agent;
	struct agent_config cfg = {.layers = {-1, -1, -1}};
	char log_dir[320];
	struct user user;
	struct err err;
	int rc;

	if (argc == 2 && strcmp(argv[0], RELAY_NAME) == 0)
		return harness_relay(argv[1]);
	if (argc != 7 && argc != 10) {
		fprintf(stderr,
			"usage: %s SOCKET CGROUP|- REPL_SCRIPT HOME ETC RUN [IMAGE UPPER ROOT]\n",
			argv[0]);
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Orphans come to the agent, as they come to PID 1. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	rc = harness_user(&user, argv[4], &err);
	if (rc == 0)
		rc = cfg.listen_fd = harness_listen(argv[1], &err);
	cfg.user = &user;
	cfg.cgroup_path = strcmp(argv[2], "-") ? argv[2] : NULL;
	cfg.cgroup_top = getenv("HARNESS_CGROUP_TOP");
	cfg.repl_script = argv[3];
	if (argc == 10) {
		cfg.layers.image = open(argv[7], O_PATH | O_DIRECTORY | O_CLOEXEC);
		cfg.layers.upper = open(argv[8], O_PATH | O_DIRECTORY | O_CLOEXEC);
		cfg.layers.root = open(argv[9], O_PATH | O_DIRECTORY | O_CLOEXEC);
	}
	snprintf(log_dir, sizeof(log_dir), "%s/.podflare", argv[4]);
	cfg.log_dir = log_dir;
	cfg.node = getenv("HARNESS_NODE") ? getenv("HARNESS_NODE") : "/usr/bin/node";
	cfg.etc_dir = argv[5];
	cfg.run_dir = argv[6];
	harness_egress(&cfg.egress);
	if (rc >= 0)
		rc = agent_init(&agent, &cfg, &err);
	if (rc < 0) {
		fprintf(stderr, "%s\n", err.msg);
		return 1;
	}
	return agent_run(&agent) < 0;
}
