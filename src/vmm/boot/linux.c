/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zero page and ramdisk placement. The map told to the kernel: conventional
 * memory below the EBDA, ACPI tables reserved, RAM from 1 MiB, RAM above 4 GiB,
 * and the root image as persistent memory (e820 type 12).
 */
#include "vmm/boot/linux.h"
#include "lib/io.h"
#include "vmm/boot/acpi.h"
#include "vmm/boot/elf.h"
#include "vmm/core/rom.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <string.h>

#define EBDA_START 0x9fc00ull
#define HIMEM      0x100000ull
#define PAGE       4096ull

#define BOOT_FLAG    0xaa55
#define HDRS_MAGIC   0x53726448 /* "HdrS" */
#define BOOT_VERSION 0x020f
#define LOADER_OTHER 0xff

/* Types of e820 entries (the uapi header has no names for them). */
#define MAP_RAM      1
#define MAP_RESERVED 2
#define MAP_PRAM     12

static void e820_add(struct boot_params *bp, uint64_t start, uint64_t size, uint32_t type)
{
	if (size == 0)
		return;
	bp->e820_table[bp->e820_entries++] =
		(struct boot_e820_entry){.addr = start, .size = size, .type = type};
}

/* Puts the ramdisk as high as 32-bit addresses and RAM allow. */
static int load_initrd(const struct gmem *ram, int fd, uint64_t kernel_end, struct boot_params *bp,
		       struct err *err)
{
	uint64_t low = gmem_low_size(ram), at;
	int64_t size = io_size(fd);
	int rc;

	if (size <= 0)
		return err_text(err, EINVAL, "the initial ramdisk has %lld bytes", (long long)size);
	if ((uint64_t)size > low || low - (uint64_t)size < kernel_end)
		return err_text(err, ENOMEM,
				"kernel and ramdisk do not fit into %llu MiB: give the VM more",
				(unsigned long long)(ram->size >> 20));
	at = (low - (uint64_t)size) & ~(PAGE - 1);
	if (at < kernel_end)
		return err_text(err, ENOMEM, "kernel and ramdisk overlap: give the VM more memory");
	rc = io_pread_full(fd, ram->base + at, (size_t)size, 0);
	if (rc < 0)
		return err_set(err, -rc, "cannot read the initial ramdisk");
	bp->hdr.ramdisk_image = (uint32_t)at;
	bp->hdr.ramdisk_size = (uint32_t)size;
	return 0;
}

int linux_load(const struct gmem *ram, const struct linux_boot *boot, uint64_t *entry,
	       struct err *err)
{
	struct boot_params bp = {0};
	struct elf_kernel kernel;
	size_t cmdlen = strlen(boot->cmdline);
	int rc;

	if (cmdlen >= LINUX_CMDLINE_MAX)
		return err_text(err, E2BIG, "the kernel command line has %zu bytes", cmdlen);
	rc = elf_load_kernel(boot->kernel_fd, ram, &kernel, err);
	if (rc < 0)
		return rc;
	rc = load_initrd(ram, boot->initrd_fd, kernel.end, &bp, err);
	if (rc < 0)
		return rc;
	bp.hdr.boot_flag = BOOT_FLAG;
	bp.hdr.header = HDRS_MAGIC;
	bp.hdr.version = BOOT_VERSION;
	bp.hdr.type_of_loader = LOADER_OTHER;
	bp.hdr.loadflags = LOADED_HIGH;
	bp.hdr.kernel_alignment = 0x1000000;
	bp.hdr.cmd_line_ptr = (uint32_t)LINUX_CMDLINE;
	bp.hdr.cmdline_size = (uint32_t)cmdlen;
	bp.acpi_rsdp_addr = ACPI_BASE;
	e820_add(&bp, 0, EBDA_START, MAP_RAM);
	e820_add(&bp, ACPI_BASE, ACPI_SIZE, MAP_RESERVED);
	e820_add(&bp, HIMEM, gmem_low_size(ram) - HIMEM, MAP_RAM);
	e820_add(&bp, GMEM_HIGH_START, gmem_high_size(ram), MAP_RAM);
	if (boot->root)
		e820_add(&bp, boot->root->gpa, boot->root->size, MAP_PRAM);
	if (gmem_write(ram, LINUX_ZERO_PAGE, &bp, sizeof(bp)) < 0 ||
	    gmem_write(ram, LINUX_CMDLINE, boot->cmdline, cmdlen + 1) < 0)
		return err_text(err, EINVAL, "no guest memory for the boot parameters");
	*entry = kernel.entry;
	return 0;
}
