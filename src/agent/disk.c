/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disk: look at the device, format, mount. Empty means that the first
 * DISK_LOOK bytes are zeros; ext4's magic number makes it ours, and anything
 * else is left alone.
 */
#define _GNU_SOURCE
#include "agent/disk.h"
#include "agent/boot.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define DISK_LOOK       65536u
#define DISK_MAGIC_AT   1080u /* s_magic of the superblock at 1024 */
#define DISK_WAIT_MS    5000
#define DISK_STEP_MS    5
#define DISK_MKFS       "/sbin/mke2fs"
#define DISK_ERROR_TEXT 256

enum disk_content { DISK_EMPTY, DISK_EXT4, DISK_FOREIGN };

/* The node appears a moment before the device behind it can be opened. */
static int disk_open(const char *dev, struct err *err)
{
	for (int ms = 0;; ms += DISK_STEP_MS) {
		_cleanup_fd int fd = open(dev, O_RDONLY | O_CLOEXEC);

		if (fd >= 0 && io_size(fd) > 0)
			return take_fd(&fd);
		if (ms >= DISK_WAIT_MS)
			return err_text(err, ENODEV,
					"there is no %s: the kernel did not find the sandbox's "
					"disk (has the machine one, are virtio_mmio and virtio_blk "
					"loaded?)",
					dev);
		usleep(DISK_STEP_MS * 1000);
	}
}

static int disk_look(int fd, enum disk_content *what)
{
	_cleanup_free uint8_t *p = malloc(DISK_LOOK);
	int rc = p ? io_pread_full(fd, p, DISK_LOOK, 0) : -ENOMEM;

	if (rc < 0)
		return rc;
	*what = DISK_FOREIGN;
	if (p[DISK_MAGIC_AT] == 0x53 && p[DISK_MAGIC_AT + 1] == 0xef)
		*what = DISK_EXT4;
	else if (p[0] == 0 && memcmp(p, p + 1, DISK_LOOK - 1) == 0)
		*what = DISK_EMPTY;
	return 0;
}

static void __attribute__((noreturn)) disk_child(const char *dev, const char *image, int out)
{
	static char config[] = "MKE2FS_CONFIG=/dev/null", locale[] = "LC_ALL=C";
	static char *const env[] = {config, locale, NULL};

	/* Both first: the source may be one of the targets when descriptors were closed. */
	out = fcntl(out, F_DUPFD_CLOEXEC, 3);
	if (out >= 0 && dup2(out, 1) >= 0 && dup2(out, 2) >= 0 && chroot(image) == 0 &&
	    chdir("/") == 0)
		/* Complete, and without a configuration: what a template has in /etc changes
		   nothing. -FF: do not ask whether it is mounted, there is no /proc to tell. */
		execle(DISK_MKFS, "mke2fs", "-FF", "-q", "-b", "4096", "-i", "16384", "-I", "256",
		       "-m", "0", "-O",
		       "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super2,large_file,"
		       "huge_file,dir_nlink,extra_isize,metadata_csum",
		       "-E", "nodiscard,assume_storage_prezeroed=1,num_backup_sb=0", dev,
		       (char *)NULL, env);
	dprintf(out, "cannot run " DISK_MKFS " of the image: %s", strerror(errno));
	_exit(127);
}

/* The first DISK_ERROR_TEXT bytes of what a child wrote, as one line; reads to the end. */
static void disk_read_text(int fd, char text[DISK_ERROR_TEXT])
{
	char more[512];
	size_t len = 0;
	ssize_t n;

	while ((n = io_read_some(fd, more, sizeof(more))) > 0)
		for (ssize_t i = 0; i < n && len < DISK_ERROR_TEXT - 1; i++)
			text[len++] = more[i] == '\n' ? ' ' : more[i];
	while (len && text[len - 1] == ' ')
		len--;
	text[len] = '\0';
}

static int disk_run_mkfs(const char *dev, const char *image, struct err *err)
{
	char text[DISK_ERROR_TEXT];
	int fds[2], wstatus;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return err_set(err, errno, "cannot make a pipe");
	pid = fork();
	if (pid == 0)
		disk_child(dev, image, fds[1]);
	close(fds[1]);
	if (pid > 0)
		disk_read_text(fds[0], text);
	close(fds[0]);
	if (pid < 0)
		return err_set(err, errno, "cannot start " DISK_MKFS);
	while (waitpid(pid, &wstatus, 0) < 0)
		if (errno != EINTR)
			return err_set(err, errno, "cannot wait for " DISK_MKFS);
	if (WIFEXITED(wstatus) && WEXITSTATUS(wstatus) == 0)
		return 0;
	return err_text(err, EIO, "the disk could not be formatted (%s %d): %s",
			WIFEXITED(wstatus) ? "exit status" : "signal",
			WIFEXITED(wstatus) ? WEXITSTATUS(wstatus) : WTERMSIG(wstatus), text);
}

static int disk_format(const char *dev, const char *image, struct err *err)
{
	char dir[128];
	int rc;

	snprintf(dir, sizeof(dir), "%s/dev", image);
	if (mount("devtmpfs", dir, "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755") < 0)
		return err_set(err, errno, "cannot mount a devtmpfs on %s", dir);
	rc = disk_run_mkfs(dev, image, err);
	if (umount2(dir, MNT_DETACH) < 0 && rc == 0)
		rc = err_set(err, errno, "cannot unmount %s", dir);
	return rc;
}

/* The host orders requests; a scheduler here only costs time. Best effort. */
static void disk_no_scheduler(const char *dev)
{
	const char *name = strrchr(dev, '/');
	_cleanup_fd int fd = -1;
	char path[128];

	snprintf(path, sizeof(path), "/sys/block/%s/queue/scheduler", name ? name + 1 : dev);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || io_write_full(fd, "none", 4) < 0)
		boot_say("%s keeps its I/O scheduler: %s", dev, strerror(errno));
}

int disk_mount(const char *dev, const char *image, const char *target, struct err *err)
{
	static const char options[] = "discard,nobarrier,noauto_da_alloc,noinit_itable,"
				      "no_prefetch_block_bitmaps,errors=remount-ro";
	enum disk_content what = DISK_FOREIGN;
	int fd = disk_open(dev, err);
	int rc;

	if (fd < 0)
		return fd;
	rc = disk_look(fd, &what);
	close(fd);
	if (rc < 0)
		return err_set(err, -rc, "cannot read %s", dev);
	if (what == DISK_FOREIGN)
		return err_text(err, EMEDIUMTYPE,
				"%s is neither empty nor an ext4 file system: left alone", dev);
	disk_no_scheduler(dev);
	if (what == DISK_EMPTY)
		rc = disk_format(dev, image, err);
	if (rc < 0)
		return rc;
	if (mkdir(target, 0755) < 0 && errno != EEXIST)
		return err_set(err, errno, "cannot make the directory %s", target);
	if (mount(dev, target, "ext4", MS_NOATIME, options) < 0)
		return err_set(err, errno, "cannot mount %s as ext4", dev);
	return 0;
}
