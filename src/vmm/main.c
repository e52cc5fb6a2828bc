/* SPDX-License-Identifier: Apache-2.0 */
/*
 * podflare-vmm: one process, one virtual machine. Started by podflared with
 * the control socket as descriptor CTL_FD and nothing else; everything it needs
 * comes through that socket. It reads no file, and takes one option: that a host
 * which allows it no namespaces is put up with.
 */
#define _GNU_SOURCE
#include "lib/log.h"
#include "vmm/ctl.h"
#include "vmm/jail/jail.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <linux/close_range.h>

static int check_control_socket(void)
{
	int type = 0;
	socklen_t len = sizeof(type);

	if (getsockopt(CTL_FD, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_SEQPACKET)
		return -1;
	return 0;
}

/* Written behind its id by the daemon, when its operator has allowed it. */
static bool may_do_without_namespaces(int argc, char **argv)
{
	return argc == 3 && strcmp(argv[2], "--without-namespaces") == 0;
}

int main(int argc, char **argv)
{
	static struct ctl ctl; /* too large for the stack; reached through pointers only */
	static struct jail jail;
	static struct loop loop;
	struct err err = {0};
	int rc;

	if (check_control_socket() < 0) {
		log_error("podflare-vmm is started by podflared, not by hand");
		return 2;
	}
	/* Belt and braces beside the control socket: the parent's end is this process's end. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (close_range(CTL_FD + 1, ~0u, 0) < 0) {
		log_error("close_range: %s", strerror(errno));
		return 1;
	}
	signal(SIGPIPE, SIG_IGN);
	/* A limit on the size of files is an error of the disk, not the end of the VM. */
	signal(SIGXFSZ, SIG_IGN);
	rc = loop_init(&loop);
	if (rc < 0) {
		log_error("event loop: %s", strerror(-rc));
		return 1;
	}
	if (jail_enter(&jail, may_do_without_namespaces(argc, argv), &err) < 0) {
		log_error("%s", err.msg);
		return 1;
	}
	ctl_init(&ctl, &loop, CTL_FD);
	ctl.machine.jail = &jail;
	rc = ctl_run(&ctl);
	/* No teardown: vCPU threads still run, and the kernel collects everything at exit. */
	_exit(rc < 0 ? 1 : 0);
}
