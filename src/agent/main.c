/* SPDX-License-Identifier: Apache-2.0 */
/*
 * podflare-agent: PID 1 of the guest. Boots, says that it is ready, serves the
 * host until the machine ends. One thread, one event loop; it sleeps when
 * nobody wants anything. When it dies the kernel panics, which ends the VM:
 * that is intended, a guest without its agent is of no use.
 */
#include "agent/agent.h"
#include "agent/boot.h"
#include "agent/relay.h"
#include "agent/rootfs.h"
#include "agent/status_port.h"
#include "lib/log.h"
#include "proto/guest.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <unistd.h>

/* What this program is called when it runs for the second time, from a huge page. */
#define MAIN_AGAIN "podflare-agent"

/* This program again, as egress.c starts it. */
static int main_relay(void)
{
	struct sockaddr_vm host = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = GUEST_EGRESS_PORT,
	};

	return relay_main((const struct sockaddr *)&host, sizeof(host));
}

int main(int argc, char **argv)
{
	static struct agent agent;
	struct boot boot = {.listen_fd = -1, .layers = {-1, -1, -1}};
	struct agent_config cfg = {
		.user = &boot.user,
		.cgroup_path = BOOT_CGROUP,
		.cgroup_top = BOOT_CGROUP_TOP,
		.repl_script = BOOT_REPL,
		.etc_dir = "/etc",
		.node = "/usr/bin/node",
		.log_dir = "/tmp/.podflare",
		.run_dir = BOOT_RUN,
		.egress = {GUEST_PROXY_HTTP_PORT, GUEST_PROXY_SOCKS_PORT, NULL},
	};
	struct err err, huge = {0};
	const char *name = argc > 0 ? argv[0] : "";
	int rc, moved;

	if (strcmp(name, RELAY_NAME) == 0)
		return main_relay();
	if (getpid() != 1) {
		fprintf(stderr, "podflare-agent is the init program of a Podflare guest and does "
				"nothing outside of one\n");
		return 2;
	}
	moved = strcmp(name, MAIN_AGAIN) == 0 ? 0 : rootfs_run_huge(MAIN_AGAIN, &huge);
	boot_run(&boot);
	if (moved < 0)
		boot_say("copies will be slower than they might be: %s", huge.msg);
	cfg.listen_fd = boot.listen_fd;
	cfg.layers = boot.layers;
	if (agent_init(&agent, &cfg, &err) < 0)
		boot_fail(BOOT_STEP_AGENT, "agent", &err);
	/* The host connects while the REPL warms up. */
	if (status_port_write(GUEST_STATUS_READY) < 0)
		log_error("the status port cannot be written: the host has to find out by itself");
	rc = agent_run(&agent);
	err_text(&err, -rc, "the event loop ended: %s", strerror(-rc));
	boot_fail(BOOT_STEP_LOOP, "event loop", &err);
}
