/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files into sealed memory files. Invariant: a descriptor in struct image or
 * root_image is sealed against writing and resizing.
 */
#define _GNU_SOURCE
#include "daemon/image.h"
#include "daemon/config.h"
#include "lib/cleanup.h"
#include "lib/io.h"
#include "lib/log.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HUGE_SIZE   (2ull << 20)
#define READ_STEP   (8ull << 20)
#define KERNEL_MAX  (512ull << 20)
#define ROOT_MAX    (64ull << 30)
#define EROFS_SUPER 1024
#define EROFS_MAGIC 0xe0f5e1e2u

/* Fields of the erofs superblock that are needed, by offset (fs/erofs/erofs_fs.h). */
#define EROFS_AT_BLKSZBITS 12
#define EROFS_AT_BLOCKS    36

static uint32_t le32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Bytes of the root image: what its superblock says; a shorter file is cut off. */
static int root_length(int fd, const char *path, uint64_t have, uint64_t *len, struct err *err)
{
	uint8_t sb[64];
	int rc = have < EROFS_SUPER + sizeof(sb) ? -ENODATA
						 : io_pread_full(fd, sb, sizeof(sb), EROFS_SUPER);

	if (rc < 0 && rc != -ENODATA)
		return err_set(err, -rc, "cannot read the root image %s", path);
	if (rc < 0 || le32(sb) != EROFS_MAGIC || sb[EROFS_AT_BLKSZBITS] < 9 ||
	    sb[EROFS_AT_BLKSZBITS] > 16)
		return err_text(err, EINVAL, "the root image %s is not an erofs image", path);
	*len = (uint64_t)le32(sb + EROFS_AT_BLOCKS) << sb[EROFS_AT_BLKSZBITS];
	if (*len == 0 || *len > have)
		return err_text(err, EINVAL,
				"the root image %s is cut off: %llu bytes of %llu are there", path,
				(unsigned long long)have, (unsigned long long)*len);
	return 0;
}

static int kernel_check(int fd, const char *path, struct err *err)
{
	unsigned char ident[EI_NIDENT];
	int rc = io_pread_full(fd, ident, sizeof(ident), 0);

	if (rc < 0 && rc != -ENODATA)
		return err_set(err, -rc, "cannot read the kernel %s", path);
	if (rc < 0 || memcmp(ident, ELFMAG, SELFMAG) != 0 || ident[EI_CLASS] != ELFCLASS64)
		return err_text(err, EINVAL,
				"the kernel %s is not an uncompressed 64-bit vmlinux (ELF)", path);
	return 0;
}

/* The next data from *at on, up to *end; false: only holes are left. */
static bool next_data(int fd, uint64_t len, uint64_t *at, uint64_t *end)
{
	off_t from, to;

	*end = len;
	if (*at >= len)
		return false;
	from = lseek(fd, (off_t)*at, SEEK_DATA);
	if (from < 0)
		return errno != ENXIO; /* a file system that does not say */
	if ((uint64_t)from >= len)
		return false;
	*at = (uint64_t)from;
	to = lseek(fd, from, SEEK_HOLE);
	if (to > from && (uint64_t)to < len)
		*end = (uint64_t)to;
	return true;
}

/* len bytes of fd into a mapping of zeros. */
static int copy_data(int fd, uint8_t *p, uint64_t len, const _Atomic bool *cancel)
{
	uint64_t at = 0, end;

	while (next_data(fd, len, &at, &end)) {
		uint64_t n = end - at < READ_STEP ? end - at : READ_STEP;
		int rc;

		if (cancel && *cancel)
			return -ECANCELED;
		rc = io_pread_full(fd, p + at, n, (off_t)at);
		/* The page cache need not keep a second copy. */
		posix_fadvise(fd, (off_t)at, (off_t)n, POSIX_FADV_DONTNEED);
		if (rc < 0)
			return rc;
		at += n;
	}
	return 0;
}

/* Reads len bytes of fd into a new sealed memory file of `size` bytes. */
static int load_sealed(int fd, const char *path, const char *name, uint64_t len, uint64_t size,
		       const _Atomic bool *cancel, int *out, struct err *err)
{
	_cleanup_fd int mem = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t *p;
	int rc;

	if (mem < 0 || ftruncate(mem, (off_t)size) < 0)
		return err_set(err, errno, "cannot make a memory file for %s", path);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
	if (p == MAP_FAILED)
		return err_set(err, errno, "cannot map a memory file for %s", path);
	/* Advice only: without huge pages everything works, slower. */
	if (size % HUGE_SIZE == 0)
		madvise(p, size, MADV_HUGEPAGE);
	/* read() into the mapping fails with EFAULT when memory is short; a store would be SIGBUS.
	 */
	rc = copy_data(fd, p, len, cancel);
	munmap(p, size);
	if (rc < 0)
		return err_set(err, rc == -EFAULT ? ENOMEM : -rc, "cannot read %s into memory",
			       path);
	if (fcntl(mem, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		return err_set(err, errno, "cannot seal the memory file of %s", path);
	*out = take_fd(&mem);
	return 0;
}

static int open_input(const char *what, const char *path, uint64_t max, uint64_t *size, int *out,
		      struct err *err)
{
	_cleanup_fd int fd = io_open_data(path);
	int64_t n;

	if (fd == -EINVAL)
		return err_text(err, EINVAL, "the %s %s is not a file or block device", what, path);
	if (fd < 0)
		return err_set(err, -fd, "cannot open the %s %s", what, path);
	n = io_size(fd);
	if (n < 0)
		return err_set(err, (int)-n, "cannot tell the size of the %s %s", what, path);
	if (n == 0 || (uint64_t)n > max)
		return err_text(err, EINVAL, "the %s %s is %s", what, path,
				n ? "too large" : "empty");
	posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	*size = (uint64_t)n;
	*out = take_fd(&fd);
	return 0;
}

static int load_kernel(struct image *im, const char *path, struct err *err)
{
	_cleanup_fd int fd = -1;
	uint64_t size = 0;
	int rc = open_input("kernel", path, KERNEL_MAX, &size, &fd, err);

	if (rc == 0)
		rc = kernel_check(fd, path, err);
	return rc < 0 ? rc
		      : load_sealed(fd, path, "vmlinux", size, size, NULL, &im->kernel_fd, err);
}

static int load_initramfs(struct image *im, const char *path, struct err *err)
{
	_cleanup_fd int fd = -1;
	uint64_t size = 0;
	int rc = open_input("initramfs", path, KERNEL_MAX, &size, &fd, err);

	return rc < 0 ? rc
		      : load_sealed(fd, path, "initramfs", size, size, NULL, &im->initramfs_fd,
				    err);
}

int image_open_root(const char *path, uint64_t *size, int *out, struct err *err)
{
	return open_input("root image", path, ROOT_MAX, size, out, err);
}

/* Bytes of memory that the host has to spare, or UINT64_MAX: it does not say. */
static uint64_t memory_available(void)
{
	static const char key[] = "\nMemAvailable:";
	_cleanup_free char *text = NULL;
	const char *at;

	if (io_read_file("/proc/meminfo", 1 << 20, &text, NULL) < 0)
		return UINT64_MAX;
	at = strstr(text, key);
	return at ? strtoull(at + sizeof(key) - 1, NULL, 10) << 10 : UINT64_MAX;
}

static int root_fits(uint64_t len, const char *path, struct err *err)
{
	uint64_t have = memory_available();

	if (len <= have)
		return 0;
	return err_text(err, ENOMEM,
			"the root image %s needs %llu MiB of memory, and the host has %llu MiB to "
			"spare",
			path, (unsigned long long)(len >> 20), (unsigned long long)(have >> 20));
}

int image_load_root(struct root_image *out, int fd, const char *path, const _Atomic bool *cancel,
		    struct err *err)
{
	int64_t size = io_size(fd); /* it may have been written to since it was opened */
	uint64_t len = 0;
	struct stat st;
	int rc = size < 0 ? err_set(err, (int)-size, "cannot read the root image %s", path) : 0;

	if (rc == 0 && (uint64_t)size > ROOT_MAX)
		rc = err_text(err, EINVAL, "the root image %s is too large", path);
	/* As it was opened, also when this is not the first time. */
	if (rc == 0 && fcntl(fd, F_SETFL, 0) < 0)
		rc = err_set(err, errno, "cannot read the root image %s", path);
	if (rc == 0)
		rc = root_length(fd, path, (uint64_t)size, &len, err);
	if (rc == 0)
		rc = root_fits(len, path, err);
	if (rc < 0)
		return rc;
	/*
	 * A disk, as in the emulated host, is read past the page cache, straight into the huge
	 * pages: five times faster there. Advice only; a device that refuses is read as a file is.
	 */
	if (fstat(fd, &st) == 0 && S_ISBLK(st.st_mode) && fcntl(fd, F_SETFL, O_DIRECT) < 0)
		log_debug("%s is read through the page cache", path);
	*out = (struct root_image){
		.fd = -1,
		.size = (len + HUGE_SIZE - 1) / HUGE_SIZE * HUGE_SIZE,
		.bytes = len,
	};
	return load_sealed(fd, path, "rootfs", len, out->size, cancel, &out->fd, err);
}

int image_load(struct image *im, const struct config *c, struct err *err)
{
	int rc;

	*im = (struct image){.kernel_fd = -1, .initramfs_fd = -1};
	rc = load_kernel(im, c->kernel_path, err);
	if (rc == 0)
		rc = load_initramfs(im, c->initramfs_path, err);
	if (rc < 0)
		image_free(im);
	return rc;
}

void image_free(struct image *im)
{
	close_fd(&im->kernel_fd);
	close_fd(&im->initramfs_fd);
}
