/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest boots from: a kernel (ELF), a ramdisk and a command line, all of them hostile. What
 * is taken lies in guest memory where it belongs, none of it over another, and the memory map
 * tells the kernel of exactly what there is.
 *
 * Input: how the ELF header is made (as it comes, or in order with program headers that come), how
 * long each part is, then the parts.
 */
#define _GNU_SOURCE
#include "input.h"

#include "vmm/boot/acpi.h"
#include "vmm/boot/elf.h"
#include "vmm/boot/linux.h"
#include "vmm/core/rom.h"
#include "vmm/x86/regs.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM      (4u << 20)
#define FILE_MAX 8192u
#define PHDRS    4u

static uint8_t file[FILE_MAX], want[RAM];

static void put_file(int fd, const void *data, size_t len)
{
	MUST(ftruncate(fd, 0) == 0 && pwrite(fd, data, len, 0) == (ssize_t)len);
}

/* A header that is in order, with segments at places and of sizes from the input. */
static void good_headers(struct input *in)
{
	Elf64_Ehdr eh = {.e_type = ET_EXEC,
			 .e_machine = EM_X86_64,
			 .e_version = 1,
			 .e_entry = 0x100000 + input_int(in, 2),
			 .e_phoff = sizeof(eh),
			 .e_phentsize = sizeof(Elf64_Phdr),
			 .e_phnum = (Elf64_Half)(1 + input_u8(in) % PHDRS)};

	memcpy(eh.e_ident, ELFMAG "\2\1\1", 7);
	memcpy(file, &eh, sizeof(eh));
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		uint8_t how = input_u8(in);
		Elf64_Phdr ph = {.p_type = how & 7 ? PT_LOAD : how >> 3,
				 .p_offset = input_int(in, how & 8 ? 8 : 2) %
					     (how & 8 ? ~0ull : FILE_MAX),
				 .p_paddr = 0x100000 + (input_int(in, 2) << 6),
				 .p_filesz = input_int(in, 2)};

		ph.p_memsz = ph.p_filesz + input_int(in, 2);
		if (how & 0x10)
			ph.p_paddr = input_int(in, 8);
		if (how & 0x20)
			ph.p_memsz = input_int(in, 8);
		if (how & 0x40)
			ph.p_filesz = input_int(in, 8);
		memcpy(file + sizeof(eh) + i * sizeof(ph), &ph, sizeof(ph));
	}
}

/* What memory must contain behind 1 MiB: the segments in their order. The kernel's end. */
static uint64_t expect_segments(size_t len)
{
	uint64_t end = 0;
	Elf64_Ehdr eh;

	memcpy(&eh, file, sizeof(eh));
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;

		MUST(eh.e_phoff <= len && (i + 1) * sizeof(ph) <= len - eh.e_phoff);
		memcpy(&ph, file + eh.e_phoff + i * sizeof(ph), sizeof(ph));
		if (ph.p_type != PT_LOAD || !ph.p_memsz)
			continue;
		MUST(ph.p_paddr >= 0x100000 && ph.p_paddr < RAM && ph.p_memsz <= RAM - ph.p_paddr);
		MUST(ph.p_filesz <= ph.p_memsz && (!ph.p_filesz || ph.p_offset < len) &&
		     ph.p_filesz <= len - (ph.p_filesz ? ph.p_offset : 0));
		memcpy(want + ph.p_paddr, file + (ph.p_filesz ? ph.p_offset : 0), ph.p_filesz);
		end = ph.p_paddr + ph.p_memsz > end ? ph.p_paddr + ph.p_memsz : end;
	}
	return end;
}

/* Sorted, without overlaps; RAM is what there is of it. */
static void check_map(const struct boot_params *bp, const struct rom *root)
{
	uint64_t ram = 0, last = 0;

	MUST(bp->e820_entries >= 3 && bp->e820_entries <= 5);
	for (unsigned i = 0; i < bp->e820_entries; i++) {
		struct boot_e820_entry e = bp->e820_table[i];

		MUST(e.size && e.addr >= last && e.addr + e.size > e.addr);
		last = e.addr + e.size;
		if (e.type == 1) {
			MUST(last <= RAM);
			ram += e.size;
		}
		if (e.type == 12)
			MUST(root && e.addr == root->gpa && e.size == root->size);
	}
	MUST(ram == RAM - 0x100000 + 0x9fc00);
}

static void check_boot(const struct gmem *ram, const struct linux_boot *boot, size_t elf_len,
		       const uint8_t *initrd, size_t initrd_len, uint64_t entry)
{
	uint64_t end;
	struct boot_params bp;

	memset(want + 0x100000, 0, RAM - 0x100000);
	end = expect_segments(elf_len);
	memcpy(&bp, ram->base + LINUX_ZERO_PAGE, sizeof(bp));
	MUST(entry >= 0x100000 && entry < end && end <= bp.hdr.ramdisk_image);
	MUST(bp.hdr.ramdisk_size == initrd_len && bp.hdr.ramdisk_image % 4096 == 0);
	MUST(bp.hdr.ramdisk_image + initrd_len <= RAM);
	memcpy(want + bp.hdr.ramdisk_image, initrd, initrd_len);
	MUST(memcmp(want + 0x100000, ram->base + 0x100000, RAM - 0x100000) == 0);
	MUST(bp.hdr.cmd_line_ptr == LINUX_CMDLINE && bp.hdr.cmdline_size < LINUX_CMDLINE_MAX);
	MUST(strcmp((char *)ram->base + LINUX_CMDLINE, boot->cmdline) == 0);
	MUST(strlen(boot->cmdline) == bp.hdr.cmdline_size);
	check_map(&bp, boot->root);
}

/* ACPI tables and page tables beside it touch nothing of it. */
static void check_tables(const struct gmem *ram, unsigned cpus)
{
	struct err err = {0};

	memcpy(want, ram->base, RAM);
	MUST(acpi_build(ram, cpus, 2, &err) == 0 && regs_write_tables(ram, &err) == 0);
	MUST(memcmp(ram->base + ACPI_BASE, "RSD PTR ", 8) == 0);
	MUST(memcmp(want + ACPI_BASE + ACPI_SIZE, ram->base + ACPI_BASE + ACPI_SIZE,
		    RAM - ACPI_BASE - ACPI_SIZE) == 0);
	MUST(memcmp(want + LINUX_CMDLINE, ram->base + LINUX_CMDLINE, LINUX_CMDLINE_MAX) == 0);
	MUST(memcmp(want + LINUX_ZERO_PAGE, ram->base + LINUX_ZERO_PAGE, 4096) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int elf_fd = -1, initrd_fd = -1;
	static uint8_t *base;
	static uint8_t initrd[FILE_MAX];
	static char cmdline[2 * LINUX_CMDLINE_MAX + 1];
	struct input in = {data, size};
	uint8_t how = input_u8(&in);
	size_t elf_len = input_int(&in, 2) % (FILE_MAX + 1);
	size_t initrd_len = input_int(&in, 2) % (FILE_MAX + 1);
	size_t cmd_len = input_int(&in, 2) % sizeof(cmdline);
	struct rom root = {.gpa = 128ull << 20, .size = 2u << 20};
	struct linux_boot boot = {.cmdline = cmdline, .root = how & 2 ? &root : NULL};
	struct gmem ram = {.size = RAM};
	struct err err = {0};
	uint64_t entry = 0;
	int rc;

	if (!base) {
		base = aligned_alloc(4096, RAM);
		elf_fd = memfd_create("kernel", MFD_CLOEXEC);
		initrd_fd = memfd_create("ramdisk", MFD_CLOEXEC);
		MUST(base && elf_fd >= 0 && initrd_fd >= 0);
	}
	ram.base = base;
	memset(base, 0, RAM);
	memset(file, 0, sizeof(file));
	if (how & 1) {
		good_headers(&in);
		if (in.left)
			memset(file + 512, input_u8(&in), sizeof(file) - 512);
	} else {
		input_bytes(&in, file, elf_len);
	}
	memset(initrd, how | 1, sizeof(initrd));
	memset(cmdline, 'a' + how % 26, sizeof(cmdline));
	input_bytes(&in, cmdline, in.left < cmd_len ? in.left : cmd_len);
	cmdline[cmd_len] = '\0';
	put_file(elf_fd, file, elf_len);
	put_file(initrd_fd, initrd, initrd_len);
	boot.kernel_fd = elf_fd;
	boot.initrd_fd = initrd_fd;
	rc = linux_load(&ram, &boot, &entry, &err);
	MUST(rc == 0 ? !err.num : err.num == -rc && err.msg[0]);
	if (rc < 0)
		return 0;
	check_boot(&ram, &boot, elf_len, initrd, initrd_len, entry);
	check_tables(&ram, 1 + how % 32);
	return 0;
}
