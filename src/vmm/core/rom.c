/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mapping of the root image. Linux handles persistent memory in sub-sections of
 * 2 MiB inside sections of 128 MiB: the region starts on the latter and ends on
 * the former, with zero pages behind the end of the file, because a fault past
 * it would be a SIGBUS of the VMM.
 */
#define _GNU_SOURCE
#include "vmm/core/rom.h"
#include "lib/io.h"
#include "vmm/core/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#define ROM_SECTION  (128ull << 20)
#define ROM_SIZE_MAX (64ull << 30)
#define SEALS_NEEDED (F_SEAL_SHRINK | F_SEAL_WRITE)

static uint64_t align_up(uint64_t v, uint64_t a)
{
	return (v + a - 1) & ~(a - 1);
}

int rom_init(struct rom *rom, int fd, const struct gmem *ram, struct err *err)
{
	int64_t bytes = io_size(fd);
	int seals = fcntl(fd, F_GET_SEALS);
	uint8_t *raw;
	uint64_t gpa;

	*rom = (struct rom){0};
	if (seals < 0 || (seals & SEALS_NEEDED) != SEALS_NEEDED)
		return err_text(err, EINVAL,
				"the root image is not a memfd sealed against write and shrink");
	if (bytes <= 0 || (uint64_t)bytes > ROM_SIZE_MAX)
		return err_text(err, EINVAL, "the root image has %lld bytes", (long long)bytes);
	rom->size = align_up((uint64_t)bytes, GMEM_ALIGN);
	rom->map_size = rom->size + GMEM_ALIGN;
	raw = mmap(NULL, rom->map_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		   0);
	if (raw == MAP_FAILED)
		return err_set(err, errno, "cannot reserve address space for the root image");
	rom->map = raw;
	rom->host = (uint8_t *)align_up((uintptr_t)raw, GMEM_ALIGN);
	if (mmap(rom->host, (size_t)bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) ==
	    MAP_FAILED) {
		int e = errno;

		rom_free(rom);
		return err_set(err, e, "cannot map the root image");
	}
	/* Huge pages make the guest's cold reads ten times faster; without them all still works. */
	madvise(rom->host, rom->size, MADV_HUGEPAGE);
	gpa = align_up(gmem_low_size(ram), ROM_SECTION);
	if (gpa + rom->size > VM_MMIO_BASE)
		gpa = align_up(GMEM_HIGH_START + gmem_high_size(ram), ROM_SECTION);
	rom->gpa = gpa;
	return 0;
}

void rom_free(struct rom *rom)
{
	if (rom->map)
		munmap(rom->map, rom->map_size);
	*rom = (struct rom){0};
}
