/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps of boot and their limits. Memory: user processes get all of it but
 * a reserve for kernel and agent, so that the OOM killer always finds its
 * victim among them, and never the agent.
 */
#define _GNU_SOURCE
#include "agent/boot.h"
#include "agent/cgroup.h"
#include "agent/modules.h"
#include "agent/rootfs.h"
#include "agent/server.h"
#include "agent/status_port.h"
#include "lib/io.h"
#include "proto/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define BOOT_RESERVE_BYTES (48ull << 20)
#define BOOT_PIDS_MIN      64u
#define BOOT_NOFILE        65536u
#define BOOT_VSOCK_WAIT_MS 5000
#define BOOT_VSOCK_STEP_MS 5

struct boot_step {
	const char *name;
	int (*fn)(struct boot *b, struct err *err);
};

void boot_say(const char *fmt, ...)
{
	_cleanup_fd int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	char text[640], line[700];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	snprintf(line, sizeof(line), "<2>podflare-agent: %s\n", text);
	if (fd >= 0 && io_write_full(fd, line, strlen(line)) < 0)
		return;
}

void boot_fail(unsigned step, const char *name, const struct err *err)
{
	boot_say("boot step %u (%s) failed: %s", step, name, err->msg);
	if (status_port_write(GUEST_STATUS_FAIL | step) < 0)
		boot_say("the status port cannot be written");
	sync();
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

/* Standard descriptors: nothing on 0 and 1, log lines to the kernel log. */
static int boot_stdio(struct boot *b, struct err *err)
{
	int null = open("/dev/null", O_RDWR);
	int log = open("/dev/kmsg", O_WRONLY);

	(void)b;
	if (null < 0 || log < 0)
		return err_set(err, errno, "cannot open /dev/null and /dev/kmsg");
	/* Raw descriptors may be 0..2 themselves here: close what lies above only. */
	if (dup2(log, 2) < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
		return err_set(err, errno, "cannot set up the standard descriptors");
	if (null > 2)
		close(null);
	if (log > 2)
		close(log);
	return 0;
}

static int boot_kernel_mounts(struct boot *b, struct err *err)
{
	(void)b;
	return rootfs_mount_kernel(err);
}

static int boot_modules(struct boot *b, struct err *err)
{
	int rc = modules_load("/modules");

	(void)b;
	return rc < 0 ? err_set(err, -rc, "cannot read /modules/order") : 0;
}

static int boot_image(struct boot *b, struct err *err)
{
	(void)b;
	return rootfs_mount_image(err);
}

static int boot_disk(struct boot *b, struct err *err)
{
	(void)b;
	return rootfs_mount_disk(err);
}

static int boot_overlay(struct boot *b, struct err *err)
{
	return rootfs_mount_overlay(&b->layers, err);
}

static int boot_mounts(struct boot *b, struct err *err)
{
	(void)b;
	return rootfs_mount_others(err);
}

static int boot_repl_files(struct boot *b, struct err *err)
{
	(void)b;
	return rootfs_copy_repl(err);
}

static int boot_switch_root(struct boot *b, struct err *err)
{
	(void)b;
	return rootfs_switch(err);
}

static int boot_identity(struct boot *b, struct err *err)
{
	(void)b;
	return rootfs_bind_identity(err);
}

static int boot_loopback(struct boot *b, struct err *err)
{
	_cleanup_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq req = {.ifr_name = "lo"};

	(void)b;
	if (fd < 0)
		return err_set(err, errno, "cannot make a socket");
	req.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(fd, SIOCSIFFLAGS, &req) < 0)
		return err_set(err, errno, "cannot bring up lo");
	return 0;
}

static int boot_user(struct boot *b, struct err *err)
{
	return user_load(&b->user, GUEST_USER, err);
}

/*
 * One process or thread for each MiB. What the kernel itself would let be (threads-max, eight times
 * as many) takes more than all memory with the smallest processes there are, 0.4 MiB each: a fork
 * bomb would end in reclaim and OOM kills instead of at a limit.
 */
static uint64_t boot_pids_max(uint64_t total)
{
	uint64_t n = total >> 20;

	return n < BOOT_PIDS_MIN ? BOOT_PIDS_MIN : n;
}

/*
 * What the kernel keeps free. Its transparent huge pages raise that to some
 * 45 MiB whatever the size of the machine: memory that nobody could use here,
 * and less than which the OOM killer would act before the cgroup's limit does.
 */
static int boot_min_free(uint64_t total, struct err *err)
{
	_cleanup_fd int fd = open("/proc/sys/vm/min_free_kbytes", O_WRONLY | O_CLOEXEC);
	uint64_t kib = total / 1024 / 128;
	char num[32];
	int rc;

	kib = kib < 4096 ? 4096 : kib > 65536 ? 65536 : kib;
	snprintf(num, sizeof(num), "%" PRIu64, kib);
	rc = fd < 0 ? -errno : io_write_full(fd, num, strlen(num));
	return rc < 0 ? err_set(err, -rc, "cannot write vm.min_free_kbytes") : 0;
}

static int boot_limits(struct boot *b, struct err *err)
{
	struct rlimit files = {BOOT_NOFILE, BOOT_NOFILE};
	_cleanup_fd int fd = -1;
	struct sysinfo si;
	uint64_t total, reserve = BOOT_RESERVE_BYTES;
	int rc;

	(void)b;
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || io_write_full(fd, "-1000", 5) < 0)
		return err_set(err, errno, "cannot write oom_score_adj");
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		return err_set(err, errno, "cannot raise the limit of descriptors");
	if (sysinfo(&si) < 0)
		return err_set(err, errno, "cannot ask for the size of memory");
	total = (uint64_t)si.totalram * si.mem_unit;
	if (reserve > total / 4)
		reserve = total / 4;
	rc = boot_min_free(total, err);
	if (rc < 0)
		return rc;
	return cgroups_limit(BOOT_CGROUP, total - reserve, boot_pids_max(total), err);
}

static int boot_host_name(struct boot *b, struct err *err)
{
	static const char name[] = "podflare";

	(void)b;
	if (sethostname(name, sizeof(name) - 1) < 0)
		return err_set(err, errno, "cannot set the host name");
	return 0;
}

/* Without a device one can listen all the same, and nobody would ever connect. */
static int boot_vsock_device(struct err *err)
{
	_cleanup_fd int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
	unsigned cid;

	if (fd < 0)
		return err_set(err, errno, "cannot open /dev/vsock");
	for (int ms = 0; ms < BOOT_VSOCK_WAIT_MS; ms += BOOT_VSOCK_STEP_MS) {
		if (ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) == 0 && cid != VMADDR_CID_ANY)
			return 0;
		usleep(BOOT_VSOCK_STEP_MS * 1000);
	}
	return err_text(err, ENODEV,
			"there is no vsock device: the kernel did not find a virtio-mmio vsock "
			"(are virtio_mmio and vmw_vsock_virtio_transport loaded?)");
}

static int boot_listen(struct boot *b, struct err *err)
{
	int rc = boot_vsock_device(err);

	if (rc < 0)
		return rc;
	b->listen_fd = server_listen_vsock(GUEST_AGENT_PORT, err);
	return b->listen_fd < 0 ? b->listen_fd : 0;
}

void boot_run(struct boot *b)
{
	/* The position, from 1, is the number on the status port. */
	static const struct boot_step steps[] = {
		{"kernel file systems", boot_kernel_mounts},
		{"standard descriptors", boot_stdio},
		{"kernel modules", boot_modules},
		{"root image", boot_image},
		{"disk", boot_disk},
		{"writable layer", boot_overlay},
		{"file systems", boot_mounts},
		{"REPL files", boot_repl_files},
		{"root directory", boot_switch_root},
		{"identity files", boot_identity},
		{"loopback interface", boot_loopback},
		{"host name", boot_host_name},
		{"user", boot_user},
		{"limits", boot_limits},
		{"vsock listener", boot_listen},
	};
	struct err err;

	for (unsigned i = 0; i < ARRAY_SIZE(steps); i++)
		if (steps[i].fn(b, &err) < 0)
			boot_fail(i + 1, steps[i].name, &err);
}
