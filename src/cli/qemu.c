/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Builds QEMU's command line as a list of strings and starts it. The choice
 * of machine and kernel options is measured, see box/README.md. Nothing
 * secret is on the command line.
 */
#define _GNU_SOURCE
#include "cli/qemu.h"

#include "cli/qemu_jail.h"
#include "cli/tools.h"
#include "lib/io.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define ARGS_MAX     192
#define PORT_BACKLOG 1024

/*
 * The kernel: no self-tests of ciphers that nothing here uses, one security
 * module (Landlock, for the VMM's jail), no watchdog that would wake an idle
 * machine. reboot=t and panic=-1 turn a crash into the end of the process.
 * The rate of the time-stamp counter is told, since measuring it against an
 * emulated timer fails on a busy host.
 * clearcpuid=cx16: CMPXCHG16B without a lock, as the kernel's allocator uses it,
 * leaves garbage in the flags in QEMU 7.2, which depends on the instructions
 * before it; with the trap flag among it a kernel dies of a debug exception. It
 * is kernels alone that are to do without (guests' too: core/machine.c):
 * programs may ask for the instruction (x86-64-v2), so the processor keeps it,
 * and the VMM shows it.
 */
static const char kernel_args[] =
	"console=ttyS0 quiet loglevel=4 reboot=t panic=-1 mitigations=off lsm=landlock "
	"cryptomgr.notests tsc=reliable nowatchdog audit=0 8250.nr_uarts=1 no_timer_check "
	"clearcpuid=cx16 tsc_early_khz=%u";

struct args {
	char *v[ARGS_MAX + 1];
	size_t n;
	bool failed; /* no memory, or too many */
};

static void args_free(struct args *a)
{
	for (size_t i = 0; i < a->n; i++)
		free(a->v[i]);
}

static void args_add(struct args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void args_add(struct args *a, const char *fmt, ...)
{
	va_list ap;
	char *s;

	if (a->n == ARGS_MAX || a->failed) {
		a->failed = true;
		return;
	}
	va_start(ap, fmt);
	if (vasprintf(&s, fmt, ap) < 0)
		a->failed = true;
	else
		a->v[a->n++] = s;
	va_end(ap);
}

/* "-option value". */
#define args_option(a, option, ...)        \
	do {                               \
		args_add(a, "%s", option); \
		args_add(a, __VA_ARGS__);  \
	} while (0)

/* In QEMU's lists of properties a comma in a value is written twice. */
static void double_commas(const char *in, char *out, size_t size)
{
	size_t n = 0;

	for (; *in && n + 2 < size; in++) {
		out[n++] = *in;
		if (*in == ',')
			out[n++] = ',';
	}
	out[n] = '\0';
}

int qemu_add_disk(struct qemu_config *c, const char *serial, const char *path, bool readonly,
		  struct err *err)
{
	struct qemu_disk *d = &c->disks[c->ndisks];

	if (c->ndisks == QEMU_DISKS_MAX)
		return err_text(err, E2BIG, "the emulated host takes at most %d disks",
				QEMU_DISKS_MAX);
	if (snprintf(d->serial, sizeof(d->serial), "%s", serial) >= (int)sizeof(d->serial) ||
	    snprintf(d->path, sizeof(d->path), "%s", path) >= (int)sizeof(d->path))
		return err_text(err, ENAMETOOLONG, "the path of disk %s is too long", serial);
	d->readonly = readonly;
	c->ndisks++;
	return 0;
}

static void add_machine(struct args *a, const struct qemu_config *c)
{
	/* Guests' memory is merged with nobody's (KSM), and in no core dump: QEMU does both
	 * unasked. */
	args_option(a, "-M",
		    "q35,sata=off,smbus=off,i8042=off,vmport=off,mem-merge=off,"
		    "dump-guest-core=off");
	args_option(a, "-accel", "tcg");
	args_option(a, "-cpu", "EPYC,+svm,+npt");
	args_option(a, "-smp", "1");
	args_option(a, "-m", "%u", c->memory_mib);
	args_add(a, "-no-user-config");
	args_add(a, "-nodefaults");
	args_option(a, "-display", "none");
	args_add(a, "-no-reboot");
	args_option(a, "-sandbox",
		    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	args_option(a, "-kernel", "%s/box/vmlinux", c->paths->base);
	args_option(a, "-initrd", "%s/box/initramfs.cpio", c->paths->base);
	args_option(a, "-append", kernel_args, c->tsc_khz);
}

static void add_streams(struct args *a, const int fds[QEMU_STREAMS])
{
	static const char *const ports[QEMU_STREAMS] = {[QEMU_ORDERS] = "orders",
							[QEMU_OUTPUT] = "output",
							[QEMU_ERRORS] = "errors",
							[QEMU_PULSE] = "pulse"};

	args_option(a, "-chardev", "stdio,id=console,signal=off");
	args_option(a, "-serial", "chardev:console");
	args_option(a, "-chardev", "socket,id=monitor,fd=%d", fds[QEMU_MONITOR]);
	args_option(a, "-mon", "chardev=monitor,mode=control");
	args_option(a, "-device", "virtio-serial-pci-non-transitional,id=ports");
	for (int i = 0; i < QEMU_STREAMS; i++) {
		if (!ports[i])
			continue;
		args_option(a, "-chardev", "socket,id=%s,fd=%d", ports[i], fds[i]);
		args_option(a, "-device", "virtserialport,bus=ports.0,nr=%d,chardev=%s,name=%s", i,
			    ports[i], ports[i]);
	}
}

static void add_devices(struct args *a, const struct qemu_config *c)
{
	char path[2 * PATH_MAX];

	if (c->network != QEMU_NO_NETWORK) {
		args_option(a, "-netdev", "user,id=%s,restrict=%s,ipv6=off", QEMU_NETDEV,
			    c->network == QEMU_OUTWARD ? "off" : "on");
		args_option(a, "-device", "virtio-net-pci-non-transitional,romfile=,netdev=%s",
			    QEMU_NETDEV);
	}
	for (size_t i = 0; i < c->ndisks; i++) {
		const struct qemu_disk *d = &c->disks[i];

		double_commas(d->path, path, sizeof(path));
		/*
		 * Zeroes are written as they come: what looks for them costs more than it saves.
		 * What cannot be written stops the machine: boxpause.h.
		 */
		args_option(
			a, "-drive",
			"if=none,id=disk%zu,format=raw,readonly=%s,discard=%s,detect-zeroes=off,"
			"werror=%s,file=%s",
			i, d->readonly ? "on" : "off", d->readonly ? "ignore" : "unmap",
			d->readonly ? "report" : "stop", path);
		args_option(a, "-device", "virtio-blk-pci-non-transitional,drive=disk%zu,serial=%s",
			    i, d->serial);
	}
}

static void qemu_child(char *const argv[], const struct qemu_config *c, const int fds[QEMU_STREAMS],
		       pid_t parent) __attribute__((noreturn));
static void qemu_child(char *const argv[], const struct qemu_config *c, const int fds[QEMU_STREAMS],
		       pid_t parent)
{
	int null = open("/dev/null", O_RDWR);
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(126); /* it died before the line above */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* A group of its own: Ctrl-C is for us, who then stop it in order. */
	setpgid(0, 0);
	for (int i = 0; i < QEMU_STREAMS; i++)
		if (fcntl(fds[i], F_SETFD, 0) < 0)
			_exit(126);
	if (null < 0 || dup2(null, 0) < 0 || dup2(fds[QEMU_CONSOLE], 1) < 0 ||
	    dup2(fds[QEMU_CONSOLE], 2) < 0)
		_exit(126);
	qemu_jail_exec(argv, c);
	_exit(127);
}

/*
 * A pipe for the console: it comes byte by byte, and a pipe takes 65536 of
 * those when we are late, a socket a few hundred. pair[0] is our end.
 */
static int make_stream(enum qemu_stream which, int pair[2])
{
	int rc = which == QEMU_CONSOLE ? pipe2(pair, O_CLOEXEC)
				       : socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);

	return rc < 0 ? -errno : io_set_nonblock(pair[0], 1);
}

/* Both ends of all streams; ours do not block. */
static int make_streams(int ours[QEMU_STREAMS], int theirs[QEMU_STREAMS], struct err *err)
{
	for (int i = 0; i < QEMU_STREAMS; i++) {
		int pair[2] = {-1, -1};
		int rc = make_stream((enum qemu_stream)i, pair);

		ours[i] = pair[0];
		theirs[i] = pair[1];
		if (rc < 0)
			return err_set(err, -rc, "cannot make the streams of the emulated host");
	}
	return 0;
}

static int qemu_spawn(struct qemu *q, struct args *a, const struct qemu_config *c,
		      const int theirs[QEMU_STREAMS], struct err *err)
{
	pid_t parent = getpid();

	a->v[a->n] = NULL;
	q->pid = fork();
	if (q->pid == 0)
		qemu_child(a->v, c, theirs, parent);
	if (q->pid < 0)
		return err_set(err, errno, "cannot start QEMU");
	q->pidfd = (int)syscall(SYS_pidfd_open, q->pid, 0);
	if (q->pidfd < 0) {
		int e = errno;

		kill(q->pid, SIGKILL);
		waitpid(q->pid, NULL, 0);
		return err_set(err, e, "cannot watch QEMU");
	}
	return 0;
}

/* Whether fd is a socket that listens on this TCP port. */
static bool listens_on(int fd, uint16_t port)
{
	struct sockaddr_in addr = {0};
	socklen_t len = sizeof(addr), size = sizeof(int);
	int listening = 0;

	return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening &&
	       getsockname(fd, (struct sockaddr *)&addr, &len) == 0 && addr.sin_family == AF_INET &&
	       ntohs(addr.sin_port) == port;
}

int qemu_widen_port(const struct qemu *q, uint16_t port)
{
	char path[64];
	struct dirent *e;
	int rc = -ENOENT;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)q->pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (rc == -ENOENT && (e = readdir(dir))) {
		_cleanup_fd int fd = -1;

		if (e->d_name[0] == '.')
			continue;
		fd = (int)syscall(SYS_pidfd_getfd, q->pidfd, (int)strtol(e->d_name, NULL, 10), 0);
		if (fd >= 0 && listens_on(fd, port))
			rc = listen(fd, PORT_BACKLOG) < 0 ? -errno : 0;
	}
	closedir(dir);
	return rc;
}

int qemu_start(struct qemu *q, const struct qemu_config *c, struct err *err)
{
	int theirs[QEMU_STREAMS] = {-1, -1, -1, -1, -1, -1};
	struct args args = {0};
	char program[PATH_MAX];
	int rc;

	*q = (struct qemu){.pid = -1, .pidfd = -1, .fds = {-1, -1, -1, -1, -1, -1}};
	rc = tools_find("qemu-system-x86_64", program);
	if (rc < 0)
		return err_text(err, ENOENT,
				"the emulated host needs QEMU and qemu-system-x86_64 is not "
				"installed: apt install qemu-system-x86");
	rc = make_streams(q->fds, theirs, err);
	if (rc == 0) {
		args_add(&args, "%s", program);
		add_machine(&args, c);
		add_streams(&args, theirs);
		add_devices(&args, c);
		if (args.failed)
			rc = err_set(err, ENOMEM, "cannot build QEMU's command line");
		else
			rc = qemu_spawn(q, &args, c, theirs, err);
	}
	args_free(&args);
	for (int i = 0; i < QEMU_STREAMS; i++) {
		close_fd(&theirs[i]);
		if (rc < 0)
			close_fd(&q->fds[i]);
	}
	return rc;
}
