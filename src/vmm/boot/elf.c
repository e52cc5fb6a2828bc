/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ELF64 kernel loader: header and program headers are copied out of the file
 * and checked, then each segment is read straight into guest RAM.
 */
#include "vmm/boot/elf.h"
#include "lib/io.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#define ELF_MAX_PHDRS 64
#define KERNEL_MIN    0x100000ull /* below 1 MiB are boot structures */

static int elf_check_header(const Elf64_Ehdr *eh, struct err *err)
{
	if (memcmp(eh->e_ident, ELFMAG, SELFMAG) != 0 || eh->e_ident[EI_CLASS] != ELFCLASS64 ||
	    eh->e_ident[EI_DATA] != ELFDATA2LSB || eh->e_machine != EM_X86_64 ||
	    eh->e_type != ET_EXEC)
		return err_text(err, ENOEXEC, "the kernel is not an x86-64 ELF executable");
	if (eh->e_phentsize != sizeof(Elf64_Phdr) || eh->e_phnum == 0 ||
	    eh->e_phnum > ELF_MAX_PHDRS)
		return err_text(err, ENOEXEC, "the kernel has %u program headers of %u bytes",
				eh->e_phnum, eh->e_phentsize);
	return 0;
}

static int elf_load_segment(int fd, const Elf64_Phdr *ph, const struct gmem *ram, struct err *err)
{
	uint8_t *dst;
	int rc;

	if (ph->p_filesz > ph->p_memsz || ph->p_paddr < KERNEL_MIN ||
	    ph->p_offset > INT64_MAX - ph->p_filesz)
		return err_text(err, ENOEXEC, "the kernel has a segment at %#llx with odd sizes",
				(unsigned long long)ph->p_paddr);
	dst = gmem_slice(ram, ph->p_paddr, ph->p_memsz);
	if (!dst)
		return err_text(err, ENOMEM,
				"the kernel needs memory up to %#llx: give the VM more memory",
				(unsigned long long)(ph->p_paddr + ph->p_memsz));
	/* Guest RAM starts as zeros, so the part behind p_filesz needs no clearing. */
	rc = io_pread_full(fd, dst, ph->p_filesz, (off_t)ph->p_offset);
	if (rc < 0)
		return err_set(err, -rc, "cannot read the kernel");
	return 0;
}

int elf_load_kernel(int fd, const struct gmem *ram, struct elf_kernel *out, struct err *err)
{
	Elf64_Phdr ph[ELF_MAX_PHDRS];
	Elf64_Ehdr eh;
	int rc = io_pread_full(fd, &eh, sizeof(eh), 0);

	if (rc < 0)
		return err_set(err, -rc, "cannot read the kernel");
	rc = elf_check_header(&eh, err);
	if (rc < 0)
		return rc;
	if (eh.e_phoff > INT64_MAX)
		return err_text(err, ENOEXEC, "the kernel's program headers are out of the file");
	rc = io_pread_full(fd, ph, eh.e_phnum * sizeof(ph[0]), (off_t)eh.e_phoff);
	if (rc < 0)
		return err_set(err, -rc, "cannot read the kernel's program headers");
	*out = (struct elf_kernel){.entry = eh.e_entry};
	for (unsigned int i = 0; i < eh.e_phnum; i++) {
		if (ph[i].p_type != PT_LOAD || ph[i].p_memsz == 0)
			continue;
		rc = elf_load_segment(fd, &ph[i], ram, err);
		if (rc < 0)
			return rc;
		if (ph[i].p_paddr + ph[i].p_memsz > out->end)
			out->end = ph[i].p_paddr + ph[i].p_memsz;
	}
	if (out->end == 0 || out->entry < KERNEL_MIN || out->entry >= out->end)
		return err_text(err, ENOEXEC, "the kernel has no usable entry point");
	return 0;
}
