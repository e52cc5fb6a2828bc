/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest RAM mapping. Private anonymous memory, because fork(2) then gives the
 * child a copy-on-write view without any file between, and because KVM's MMU
 * notifier follows the kernel's copies. Never a shared mapping.
 */
#define _GNU_SOURCE
#include "vmm/core/gmem.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

int gmem_init(struct gmem *gm, uint64_t size, struct err *err)
{
	uint8_t *raw, *base;
	uint64_t head;

	*gm = (struct gmem){0};
	if (size == 0 || size % GMEM_ALIGN)
		return err_text(err, EINVAL,
				"guest memory of %llu bytes is not a multiple of 2 MiB",
				(unsigned long long)size);
	/* One alignment unit more, then both ends are cut: huge pages need equal offsets. */
	raw = mmap(NULL, size + GMEM_ALIGN, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (raw == MAP_FAILED)
		return err_set(err, errno, "cannot map %llu MiB of guest memory",
			       (unsigned long long)(size >> 20));
	base = (uint8_t *)(((uintptr_t)raw + GMEM_ALIGN - 1) & ~(uintptr_t)(GMEM_ALIGN - 1));
	head = (uint64_t)(base - raw);
	if (head)
		munmap(raw, head);
	munmap(base + size, GMEM_ALIGN - head);
	/* Without THP in the kernel the advice fails and 4 KiB pages serve as well. */
	madvise(base, size, MADV_HUGEPAGE);
	madvise(base, size, MADV_DONTDUMP);
	gm->base = base;
	gm->size = size;
	return 0;
}

void gmem_free(struct gmem *gm)
{
	if (gm->base)
		munmap(gm->base, gm->size);
	*gm = (struct gmem){0};
}

int gmem_read(const struct gmem *gm, uint64_t gpa, void *dst, uint64_t len)
{
	const void *src = gmem_slice(gm, gpa, len);

	if (!src)
		return -EFAULT;
	memcpy(dst, src, len);
	return 0;
}

int gmem_write(const struct gmem *gm, uint64_t gpa, const void *src, uint64_t len)
{
	void *dst = gmem_slice(gm, gpa, len);

	if (!dst)
		return -EFAULT;
	memcpy(dst, src, len);
	return 0;
}
