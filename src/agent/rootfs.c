/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mounts. The new root is put together below NEW_ROOT and moved to / in the
 * last step; the mounts of image and writable layer stay in the initramfs,
 * below the new root, where only the overlay reaches them.
 */
#define _GNU_SOURCE
#include "agent/rootfs.h"
#include "agent/boot.h"
#include "agent/disk.h"
#include "lib/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define PMEM     "/dev/pmem0"
#define DISK     "/dev/vda"
#define IMAGE    "/image"
#define LAYER    "/layer"
#define NEW_ROOT "/newroot"
#define HUGE     "/huge"
/* nd_pmem may attach its device in the background. */
#define PMEM_WAIT_MS 5000
#define PMEM_STEP_MS 5

struct mount_entry {
	const char *type, *target;
	unsigned long flags;
	const char *options;
};

static int rootfs_mount(const struct mount_entry *m, struct err *err)
{
	if (mkdir(m->target, 0755) < 0 && errno != EEXIST)
		return err_set(err, errno, "cannot make the directory %s", m->target);
	if (mount(m->type, m->target, m->type, m->flags, m->options) < 0)
		return err_set(err, errno, "cannot mount %s on %s", m->type, m->target);
	return 0;
}

static int rootfs_mount_all(const struct mount_entry *m, size_t n, struct err *err)
{
	int rc = 0;

	for (size_t i = 0; i < n && rc == 0; i++)
		rc = rootfs_mount(&m[i], err);
	return rc;
}

/* devtmpfs holds devices only; these links are what programs expect beside them. */
static int rootfs_link_devices(struct err *err)
{
	static const char *const links[][2] = {
		{"/proc/self/fd", "/dev/fd"},
		{"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"},
		{"/proc/self/fd/2", "/dev/stderr"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(links); i++)
		if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
			return err_set(err, errno, "cannot make the link %s", links[i][1]);
	return 0;
}

int rootfs_mount_kernel(struct err *err)
{
	static const struct mount_entry mounts[] = {
		{"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
		{"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
		{"devtmpfs", "/dev", MS_NOSUID, "mode=0755"},
	};
	int rc = rootfs_mount_all(mounts, ARRAY_SIZE(mounts), err);

	return rc < 0 ? rc : rootfs_link_devices(err);
}

/* The node appears a moment before the device behind it can be opened. */
static int rootfs_pmem_ready(void)
{
	_cleanup_fd int fd = open(PMEM, O_RDONLY | O_CLOEXEC);

	return fd >= 0;
}

static int rootfs_wait_pmem(struct err *err)
{
	for (int ms = 0; !rootfs_pmem_ready(); ms += PMEM_STEP_MS) {
		if (ms >= PMEM_WAIT_MS)
			return err_text(
				err, ENODEV,
				"there is no " PMEM ": the kernel did not find the persistent "
				"memory region of the root image (is pci=conf1 on the command "
				"line, are nd_e820 and nd_pmem loaded?)");
		usleep(PMEM_STEP_MS * 1000);
	}
	return 0;
}

int rootfs_mount_image(struct err *err)
{
	int rc = rootfs_wait_pmem(err);

	if (rc < 0)
		return rc;
	if (mkdir(IMAGE, 0755) < 0 && errno != EEXIST)
		return err_set(err, errno, "cannot make the directory " IMAGE);
	if (mount(PMEM, IMAGE, "erofs", MS_RDONLY, "dax=always") == 0)
		return 0;
	boot_say("the root image cannot be mounted with dax=always (%s): using the page cache",
		 strerror(errno));
	if (mount(PMEM, IMAGE, "erofs", MS_RDONLY, NULL) < 0)
		return err_set(err, errno, "cannot mount " PMEM " as erofs");
	return 0;
}

int rootfs_mount_disk(struct err *err)
{
	return disk_mount(DISK, IMAGE, LAYER, err);
}

/* O_PATH: it outlives the switch of the root, after which there is no name for the directory. */
static int rootfs_keep(const char *path, int *fd, struct err *err)
{
	*fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return *fd < 0 ? err_set(err, errno, "cannot open %s", path) : 0;
}

int rootfs_mount_overlay(struct layers *l, struct err *err)
{
	/* redirect_dir: directories of the image can be renamed, as on any other file system. */
	static const struct mount_entry overlay = {"overlay", NEW_ROOT, MS_NOATIME,
						   "lowerdir=" IMAGE ",upperdir=" LAYER
						   "/upper,workdir=" LAYER "/work,redirect_dir=on"};
	int rc;

	if ((mkdir(LAYER "/upper", 0755) < 0 && errno != EEXIST) ||
	    (mkdir(LAYER "/work", 0755) < 0 && errno != EEXIST))
		return err_set(err, errno, "cannot make the directories of the writable layer");
	rc = rootfs_keep(LAYER "/upper", &l->upper, err);
	if (rc == 0)
		rc = rootfs_keep(IMAGE, &l->image, err);
	if (rc == 0)
		rc = rootfs_mount(&overlay, err);
	return rc == 0 ? rootfs_keep(NEW_ROOT, &l->root, err) : rc;
}

int rootfs_mount_others(struct err *err)
{
	static const struct mount_entry mounts[] = {
		{"tmpfs", NEW_ROOT "/run", MS_NOSUID | MS_NODEV, "mode=0755,size=10%"},
		{"devpts", NEW_ROOT "/dev/pts", MS_NOSUID | MS_NOEXEC,
		 "gid=5,mode=620,ptmxmode=666"},
		/* With /run less than memory.max: when both are full they can still be emptied. */
		{"tmpfs", NEW_ROOT "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777,size=50%"},
		{"cgroup2", NEW_ROOT "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
	};
	static const char *const moved[] = {"/proc", "/sys", "/dev"};

	for (size_t i = 0; i < ARRAY_SIZE(moved); i++) {
		char to[64];

		snprintf(to, sizeof(to), NEW_ROOT "%s", moved[i]);
		if (mkdir(to, 0755) < 0 && errno != EEXIST)
			return err_set(err, errno, "cannot make the directory %s", to);
		if (mount(moved[i], to, NULL, MS_MOVE, NULL) < 0)
			return err_set(err, errno, "cannot move %s to %s", moved[i], to);
	}
	return rootfs_mount_all(mounts, ARRAY_SIZE(mounts), err);
}

static int copy_file(const char *from, const char *to, mode_t mode)
{
	_cleanup_fd int in = open(from, O_RDONLY | O_CLOEXEC);
	_cleanup_fd int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	char buf[16384];

	if (in < 0 || out < 0)
		return -errno;
	for (;;) {
		ssize_t n = io_read_some(in, buf, sizeof(buf));
		int rc;

		if (n <= 0)
			return (int)n;
		rc = io_write_full(out, buf, (size_t)n);
		if (rc < 0)
			return rc;
	}
}

/* Copies files and the directories below (compiled modules lie in one), `depth` levels deep. */
static int copy_tree(const char *from, const char *to, int depth, struct err *err)
{
	char src[PATH_MAX], dst[PATH_MAX];
	struct dirent *e;
	int rc = 0;
	DIR *d;

	if (mkdir(to, 0755) < 0)
		return err_set(err, errno, "cannot make the directory %s", to);
	d = opendir(from);
	if (!d)
		return err_set(err, errno, "cannot open %s of the initramfs", from);
	while (rc == 0 && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(src, sizeof(src), "%s/%s", from, e->d_name);
		snprintf(dst, sizeof(dst), "%s/%s", to, e->d_name);
		if (e->d_type == DT_DIR && depth > 1) {
			rc = copy_tree(src, dst, depth - 1, err);
		} else if (e->d_type == DT_REG) {
			rc = copy_file(src, dst, 0644);
			if (rc < 0)
				err_set(err, -rc, "cannot copy %s", src);
		}
	}
	closedir(d);
	return rc;
}

int rootfs_run_huge(const char *name, struct err *err)
{
	static const struct mount_entry huge = {"tmpfs", HUGE, MS_NOSUID | MS_NODEV,
						"mode=0755,size=8m,huge=always"};
	char *argv[] = {(char *)(size_t)name, NULL}, path[64];
	int rc = rootfs_mount(&huge, err);

	if (rc < 0)
		return rc;
	snprintf(path, sizeof(path), HUGE "/%s", name);
	rc = copy_file("/init", path, 0755);
	if (rc < 0) {
		err_set(err, -rc, "cannot copy the agent");
	} else {
		execv(path, argv);
		rc = err_set(err, errno, "cannot run the agent's copy");
	}
	/* A part of it would lie in the memory of all copies. */
	if (umount2(HUGE, MNT_DETACH) == 0)
		rmdir(HUGE);
	return rc;
}

int rootfs_copy_repl(struct err *err)
{
	if (mkdir(NEW_ROOT "/run/podflare", 0755) < 0)
		return err_set(err, errno, "cannot make the directory /run/podflare");
	return copy_tree("/repl", NEW_ROOT "/run/podflare/repl", 2, err);
}

/* Unlinks the files of a directory: an initramfs is memory, which the guest can use better. */
static void rootfs_unlink_files(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	if (!d)
		return;
	while ((e = readdir(d)))
		if (e->d_type == DT_REG)
			unlinkat(dirfd(d), e->d_name, 0);
	closedir(d);
}

int rootfs_switch(struct err *err)
{
	rootfs_unlink_files("/modules");
	rootfs_unlink_files("/repl");
	rootfs_unlink_files("/");
	if (chdir(NEW_ROOT) < 0)
		return err_set(err, errno, "cannot enter " NEW_ROOT);
	if (mount(".", "/", NULL, MS_MOVE, NULL) < 0)
		return err_set(err, errno, "cannot move the root");
	if (chroot(".") < 0 || chdir("/") < 0)
		return err_set(err, errno, "cannot change the root directory");
	return 0;
}

static int bind_identity(const char *name, struct err *err)
{
	char etc[64], own[64];
	int rc;

	snprintf(etc, sizeof(etc), "/etc/%s", name);
	snprintf(own, sizeof(own), "/run/podflare/etc/%s", name);
	{
		/* An image need not have it; to be mounted over, it must be there. */
		_cleanup_fd int fd = open(etc, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

		if (fd < 0)
			return err_set(err, errno, "cannot open %s", etc);
	}
	rc = copy_file(etc, own, 0644);
	if (rc < 0)
		return err_set(err, -rc, "cannot copy %s", etc);
	if (mount(own, etc, NULL, MS_BIND, NULL) < 0)
		return err_set(err, errno, "cannot mount a file on %s", etc);
	return 0;
}

int rootfs_bind_identity(struct err *err)
{
	static const char *const names[] = {"hostname", "hosts", "machine-id"};
	int rc = 0;

	if (mkdir("/run/podflare/etc", 0755) < 0)
		return err_set(err, errno, "cannot make the directory /run/podflare/etc");
	for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(names); i++)
		rc = bind_identity(names[i], err);
	return rc;
}
