/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon's part in the life of a VMM, as little of it as a test program needs.
 */
#define _GNU_SOURCE
#include "vmtool.h"
#include "lib/fdpass.h"
#include "lib/io.h"
#include "lib/layerfile.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

void vmtool_die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static int open_ro(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		vmtool_die(path);
	return fd;
}

static int sealed_copy(const char *path)
{
	_cleanup_fd int in = open_ro(path);
	int fd = memfd_create("root", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int64_t left = io_size(in);

	if (fd < 0 || left < 0)
		vmtool_die(path);
	while (left > 0) {
		ssize_t n = sendfile(fd, in, NULL, (size_t)left);

		if (n <= 0)
			vmtool_die("sendfile");
		left -= n;
	}
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
		vmtool_die("seal");
	return fd;
}

static int spawn_vmm(const char *path, int sndbuf)
{
	int sv[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		vmtool_die("socketpair");
	/* As the daemon makes them: a VMM never waits for who does not read. */
	if (io_set_nonblock(sv[1], 1) < 0)
		vmtool_die("O_NONBLOCK");
	if (sndbuf && setsockopt(sv[1], SOL_SOCKET, SO_SNDBUF, &sndbuf, sizeof(sndbuf)) < 0)
		vmtool_die("SO_SNDBUF");
	pid = fork();
	if (pid < 0)
		vmtool_die("fork");
	if (pid == 0) {
		if (dup2(sv[1], CTL_FD) < 0)
			_exit(127);
		fcntl(CTL_FD, F_SETFD, 0);
		execl(path, "podflare-vmm", NULL);
		_exit(127);
	}
	close(sv[1]);
	return sv[0];
}

static int new_console(struct vmtool *t)
{
	int fd = memfd_create("console", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, CONSOLE_RING_SIZE) < 0)
		vmtool_die("console");
	t->ring = mmap(NULL, CONSOLE_RING_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	if (t->ring == MAP_FAILED)
		vmtool_die("mmap");
	t->seen = 0;
	return fd;
}

/* A layer for a disk, where temporary files go. */
static void new_layer(int *rw, int *ro)
{
	const char *dir = getenv("TMPDIR");
	int rc = layerfile_make(dir ? dir : "/tmp", rw, ro);

	if (rc < 0) {
		errno = -rc;
		vmtool_die("layer of a disk");
	}
}

void vmtool_boot(struct vmtool *t, const struct vmtool_boot *b)
{
	struct ctl_msg m = {.type = CTL_BOOT,
			    .mem_mib = b->mem_mib,
			    .vcpus = b->vcpus,
			    .disk_mib = VMTOOL_DISK_MIB};
	int fds[CTL_BOOT_FDS];

	t->sock = spawn_vmm(b->vmm, b->sndbuf);
	fds[CTL_BOOT_KVM] = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (fds[CTL_BOOT_KVM] < 0)
		vmtool_die("/dev/kvm");
	fds[CTL_BOOT_KERNEL] = open_ro(b->kernel);
	fds[CTL_BOOT_INITRD] = open_ro(b->initrd);
	fds[CTL_BOOT_ROOT] = sealed_copy(b->root);
	fds[CTL_BOOT_CONSOLE] = new_console(t);
	new_layer(&fds[CTL_BOOT_DISK_RW], &fds[CTL_BOOT_DISK_RO]);
	snprintf(m.text, sizeof(m.text), "%s", b->cmdline);
	if (ctl_send(t->sock, &m, fds) < 0)
		vmtool_die("sending CTL_BOOT");
	for (size_t i = 0; i < CTL_BOOT_FDS; i++)
		close(fds[i]);
}

void vmtool_fork(struct vmtool *t, struct vmtool *child)
{
	struct ctl_msg m = {.type = CTL_FORK};
	int sv[2], fds[CTL_FORK_FDS];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		vmtool_die("socketpair");
	if (io_set_nonblock(sv[1], 1) < 0)
		vmtool_die("O_NONBLOCK");
	child->sock = sv[0];
	fds[CTL_FORK_CONTROL] = sv[1];
	fds[CTL_FORK_CONSOLE] = new_console(child);
	new_layer(&fds[CTL_FORK_PARENT_RW], &fds[CTL_FORK_PARENT_RO]);
	new_layer(&fds[CTL_FORK_CHILD_RW], &fds[CTL_FORK_CHILD_RO]);
	fds[CTL_FORK_GATE] = open_ro("/dev/zero");
	if (ctl_send(t->sock, &m, fds) < 0)
		vmtool_die("sending CTL_FORK");
	for (size_t i = 0; i < CTL_FORK_FDS; i++)
		close(fds[i]);
}

int vmtool_connect(struct vmtool *t, uint32_t port)
{
	struct ctl_msg m = {.type = CTL_CONNECT, .id = port, .port = port};
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		vmtool_die("socketpair");
	if (ctl_send(t->sock, &m, &sv[1]) < 0)
		vmtool_die("sending CTL_CONNECT");
	close(sv[1]);
	vmtool_expect(t, CTL_CONNECTED, &m);
	return sv[0];
}

void vmtool_print_console(struct vmtool *t)
{
	uint64_t total = atomic_load_explicit(&t->ring->total, memory_order_acquire);

	for (; t->seen < total; t->seen++)
		putchar(t->ring->data[t->seen % CONSOLE_RING_DATA]);
	fflush(stdout);
}

void vmtool_recv(struct vmtool *t, struct ctl_msg *m, int print)
{
	for (;;) {
		struct pollfd p = {.fd = t->sock, .events = POLLIN};
		int in[FDPASS_MAX], rc;

		poll(&p, 1, print ? 100 : -1);
		if (print)
			vmtool_print_console(t);
		if (!p.revents)
			continue;
		rc = ctl_recv(t->sock, m, in);
		if (rc == 1)
			break;
		if (rc != -EAGAIN) {
			errno = -rc;
			vmtool_die("the VMM closed its socket");
		}
	}
	if (print)
		vmtool_print_console(t);
}

void vmtool_expect(struct vmtool *t, uint32_t type, struct ctl_msg *m)
{
	do {
		vmtool_recv(t, m, 0);
		if (m->type == CTL_EXITED || m->type == CTL_REFUSED) {
			vmtool_print_console(t);
			fprintf(stderr, "message %#x instead of %#x: %s\n", m->type, type, m->text);
			exit(1);
		}
	} while (m->type != type);
}
