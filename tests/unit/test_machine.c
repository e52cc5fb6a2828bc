/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine without KVM: IOAPIC, console, guest memory, ACPI tables, kernel
 * loader; each with what a hostile guest or file can do to it.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "lib/io.h"
#include "vmm/boot/acpi.h"
#include "vmm/boot/elf.h"
#include "vmm/core/gmem.h"
#include "vmm/dev/console.h"
#include "vmm/irq/ioapic.h"

#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct msi_log {
	uint32_t address, data;
	int count;
};

static void log_msi(void *arg, uint32_t address, uint32_t data)
{
	struct msi_log *l = arg;

	l->address = address;
	l->data = data;
	l->count++;
}

static void redir_write(struct ioapic *io, unsigned int pin, uint64_t entry)
{
	ioapic_write(io, 0x00, 0x11 + 2 * pin);
	ioapic_write(io, 0x10, (uint32_t)(entry >> 32));
	ioapic_write(io, 0x00, 0x10 + 2 * pin);
	ioapic_write(io, 0x10, (uint32_t)entry);
}

static void test_ioapic_delivers(void **state)
{
	struct msi_log log = {0};
	struct ioapic io;

	(void)state;
	ioapic_init(&io, log_msi, &log);
	ioapic_raise(&io, 16);
	assert_int_equal(log.count, 0); /* masked after reset, but kept */
	redir_write(&io, 16, 3ull << 56 | 0x31);
	assert_int_equal(log.count, 1);
	assert_int_equal(log.address, 0xfee03000);
	assert_int_equal(log.data, 0x31);
	ioapic_raise(&io, 16);
	assert_int_equal(log.count, 2);
	redir_write(&io, 16, 3ull << 56 | 1u << 16 | 0x31);
	ioapic_raise(&io, 16);
	ioapic_raise(&io, 16);
	assert_int_equal(log.count, 2);
	redir_write(&io, 16, 1ull << 56 | 1u << 11 | 0x32);
	assert_int_equal(log.count, 3); /* two edges while masked are one interrupt */
	assert_int_equal(log.address, 0xfee01004);
}

static void test_ioapic_registers(void **state)
{
	struct msi_log log = {0};
	struct ioapic io;

	(void)state;
	ioapic_init(&io, log_msi, &log);
	ioapic_write(&io, 0x00, 1);
	assert_int_equal(ioapic_read(&io, 0x10), 0x00170011);
	/* Read-only and reserved bits of an entry stay clear. */
	redir_write(&io, 0, UINT64_MAX);
	ioapic_write(&io, 0x00, 0x10);
	assert_int_equal(ioapic_read(&io, 0x10), 0x1ffff & ~0x5000);
	ioapic_write(&io, 0x00, 0x11);
	assert_int_equal(ioapic_read(&io, 0x10), 0xff000000);
	/* Every index and offset is harmless. */
	for (uint32_t sel = 0; sel < 0x200; sel++) {
		ioapic_write(&io, 0x00, sel);
		ioapic_write(&io, 0x10, 0xffffffff);
		ioapic_read(&io, 0x10);
	}
	for (uint64_t off = 0; off < 0x1000; off += 4)
		ioapic_read(&io, off);
	ioapic_raise(&io, 24);
	ioapic_raise(&io, 1000);
	assert_int_equal(io.s.pending & ~0xffffffu, 0);
}

static void test_ioapic_save_load_save(void **state)
{
	struct msi_log log = {0};
	struct ioapic_state a = {0}, b, hostile;
	struct ioapic io, io2;

	(void)state;
	ioapic_init(&io, log_msi, &log);
	redir_write(&io, 5, 7ull << 56 | 0x77);
	ioapic_raise(&io, 9);
	ioapic_save(&io, &a);
	ioapic_init(&io2, log_msi, &log);
	ioapic_load(&io2, &a);
	ioapic_save(&io2, &b);
	assert_memory_equal(&a, &b, sizeof(a));
	memset(&hostile, 0xff, sizeof(hostile));
	ioapic_load(&io2, &hostile);
	assert_int_equal(io2.s.pending, 0xffffff);
	assert_int_equal(io2.s.select, 0xff);
	assert_true((io2.s.redir[3] & 0x5000) == 0);
}

static void test_console_ring(void **state)
{
	struct console c;
	struct console_state s;
	struct err err = {0};
	int fd = memfd_create("ring", 0);

	(void)state;
	assert_int_equal(ftruncate(fd, 100), 0);
	assert_int_equal(console_init(&c, fd, &err), -EINVAL);
	assert_int_equal(ftruncate(fd, CONSOLE_RING_SIZE), 0);
	assert_int_equal(console_init(&c, fd, &err), 0);
	for (unsigned int i = 0; i < 3 * CONSOLE_RING_SIZE; i++)
		console_write(&c, 0, (uint8_t)i);
	assert_int_equal(c.ring->total, 3 * CONSOLE_RING_SIZE);
	for (uint64_t i = 3 * CONSOLE_RING_SIZE - CONSOLE_RING_DATA; i < c.ring->total; i++)
		assert_int_equal(c.ring->data[i % CONSOLE_RING_DATA], (uint8_t)i);
	/* With DLAB the same register is the divisor: nothing is printed. */
	console_write(&c, 3, 0x80);
	console_write(&c, 0, 'x');
	assert_int_equal(c.ring->total, 3 * CONSOLE_RING_SIZE);
	assert_int_equal(console_read(&c, 0), 'x');
	console_write(&c, 3, 0x03);
	assert_int_equal(console_read(&c, 5), 0x60);
	console_save(&c, &s);
	c.s = (struct console_state){0};
	console_load(&c, &s);
	assert_int_equal(console_read(&c, 3), 0x03);
	for (unsigned int r = 0; r < 64; r++)
		console_read(&c, r);
	console_free(&c);
	close(fd);
}

static void test_gmem_bounds(void **state)
{
	struct err err = {0};
	struct gmem gm;
	uint64_t size = 4ull << 30;
	uint8_t b = 0;

	(void)state;
	assert_int_equal(gmem_init(&gm, 3u << 20, &err), -EINVAL);
	assert_int_equal(gmem_init(&gm, size, &err), 0);
	assert_int_equal((uintptr_t)gm.base % GMEM_ALIGN, 0);
	assert_non_null(gmem_slice(&gm, 0, GMEM_GAP_START));
	assert_null(gmem_slice(&gm, 0, GMEM_GAP_START + 1));
	assert_null(gmem_slice(&gm, GMEM_GAP_START, 1));
	assert_null(gmem_slice(&gm, GMEM_HIGH_START - 1, 1));
	assert_ptr_equal(gmem_slice(&gm, GMEM_HIGH_START, 1 << 30), gm.base + GMEM_GAP_START);
	assert_null(gmem_slice(&gm, GMEM_HIGH_START, (1 << 30) + 1));
	assert_null(gmem_slice(&gm, 1, UINT64_MAX));
	assert_null(gmem_slice(&gm, UINT64_MAX, 1));
	assert_null(gmem_slice(&gm, UINT64_MAX, UINT64_MAX));
	assert_int_equal(gmem_write(&gm, GMEM_GAP_START - 1, "x", 1), 0);
	assert_int_equal(gmem_read(&gm, GMEM_GAP_START - 1, &b, 1), 0);
	assert_int_equal(b, 'x');
	assert_int_equal(gmem_write(&gm, GMEM_GAP_START - 1, "xy", 2), -EFAULT);
	gmem_free(&gm);
}

static uint8_t sum(const uint8_t *p, size_t n)
{
	uint8_t s = 0;

	while (n--)
		s = (uint8_t)(s + *p++);
	return s;
}

static uint32_t rd32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static const uint8_t *table_at(const struct gmem *gm, const uint8_t *ptr, const char *sig)
{
	uint64_t gpa;
	const uint8_t *t;

	memcpy(&gpa, ptr, sizeof(gpa));
	assert_in_range(gpa, ACPI_BASE, ACPI_BASE + ACPI_SIZE - 1);
	t = gmem_slice(gm, gpa, 36);
	assert_memory_equal(t, sig, 4);
	assert_int_equal(sum(t, rd32(t + 4)), 0);
	return t;
}

static void test_acpi_tables(void **state)
{
	static const unsigned int cpus[] = {1, 2, 32, 255};
	struct err err = {0};
	struct gmem gm;

	(void)state;
	assert_int_equal(gmem_init(&gm, 2u << 20, &err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(cpus); i++) {
		const uint8_t *rsdp = gm.base + ACPI_BASE, *xsdt, *fadt, *madt, *dsdt;

		assert_int_equal(acpi_build(&gm, cpus[i], 3, &err), 0);
		assert_memory_equal(rsdp, "RSD PTR ", 8);
		assert_int_equal(sum(rsdp, 20), 0);
		assert_int_equal(sum(rsdp, 36), 0);
		xsdt = table_at(&gm, rsdp + 24, "XSDT");
		fadt = table_at(&gm, xsdt + 36, "FACP");
		madt = table_at(&gm, xsdt + 44, "APIC");
		dsdt = table_at(&gm, fadt + 140, "DSDT");
		assert_true(rd32(fadt + 112) & 1u << 20);
		assert_int_equal(rd32(madt + 4), 44 + 8 * cpus[i] + 12);
		assert_int_equal(madt[44 + 8 * (cpus[i] - 1) + 3], cpus[i] - 1);
		assert_non_null(memmem(dsdt, rd32(dsdt + 4), "LNRO0005", 8));
		assert_non_null(memmem(dsdt, rd32(dsdt + 4), "_S5_", 4));
	}
	assert_int_not_equal(acpi_build(&gm, 1000000, 3, &err), 0);
	assert_int_not_equal(acpi_build(&gm, 1, 1000, &err), 0);
	gmem_free(&gm);
}

struct elf_file {
	Elf64_Ehdr eh;
	Elf64_Phdr ph[2];
	uint8_t data[64];
};

static struct elf_file good_elf(void)
{
	struct elf_file f = {0};

	memcpy(f.eh.e_ident, ELFMAG, SELFMAG);
	f.eh.e_ident[EI_CLASS] = ELFCLASS64;
	f.eh.e_ident[EI_DATA] = ELFDATA2LSB;
	f.eh.e_machine = EM_X86_64;
	f.eh.e_type = ET_EXEC;
	f.eh.e_entry = 0x100010;
	f.eh.e_phoff = offsetof(struct elf_file, ph);
	f.eh.e_phentsize = sizeof(Elf64_Phdr);
	f.eh.e_phnum = 2;
	f.ph[0].p_type = PT_LOAD;
	f.ph[0].p_offset = offsetof(struct elf_file, data);
	f.ph[0].p_filesz = sizeof(f.data);
	f.ph[0].p_memsz = 4096;
	f.ph[0].p_paddr = 0x100000;
	memset(f.data, 0x90, sizeof(f.data));
	return f;
}

static int load_elf(const struct elf_file *f, size_t len, const struct gmem *gm,
		    struct elf_kernel *k)
{
	_cleanup_fd int fd = memfd_create("elf", 0);
	struct err err = {0};
	int rc;

	assert_int_equal(io_pwrite_full(fd, f, len, 0), 0);
	rc = elf_load_kernel(fd, gm, k, &err);
	assert_true(rc == 0 || err.msg[0]);
	return rc;
}

static void test_elf_loader(void **state)
{
	struct elf_kernel k = {0};
	struct elf_file f = good_elf();
	struct err err = {0};
	struct gmem gm;

	(void)state;
	assert_int_equal(gmem_init(&gm, 4u << 20, &err), 0);
	assert_int_equal(load_elf(&f, sizeof(f), &gm, &k), 0);
	assert_int_equal(k.entry, 0x100010);
	assert_int_equal(k.end, 0x101000);
	assert_int_equal(gm.base[0x100000 + 63], 0x90);
#define REFUSED(change)                                            \
	do {                                                       \
		f = good_elf();                                    \
		change;                                            \
		assert_true(load_elf(&f, sizeof(f), &gm, &k) < 0); \
	} while (0)
	REFUSED(f.eh.e_ident[0] = 0);
	REFUSED(f.eh.e_ident[EI_CLASS] = ELFCLASS32);
	REFUSED(f.eh.e_machine = EM_AARCH64);
	REFUSED(f.eh.e_type = ET_DYN);
	REFUSED(f.eh.e_phnum = 0);
	REFUSED(f.eh.e_phnum = 65);
	REFUSED(f.eh.e_phnum = 60);
	REFUSED(f.eh.e_phentsize = 1);
	REFUSED(f.eh.e_phoff = UINT64_MAX);
	REFUSED(f.eh.e_phoff = 1 << 20);
	REFUSED(f.eh.e_entry = 0);
	REFUSED(f.eh.e_entry = 0x101000);
	REFUSED(f.ph[0].p_type = PT_NULL);
	REFUSED(f.ph[0].p_paddr = 0);
	REFUSED(f.ph[0].p_paddr = 4u << 20);
	REFUSED(f.ph[0].p_paddr = UINT64_MAX - 100);
	REFUSED(f.ph[0].p_memsz = UINT64_MAX);
	REFUSED(f.ph[0].p_memsz = 10);
	REFUSED(f.ph[0].p_offset = UINT64_MAX - 10);
	REFUSED(f.ph[0].p_offset = sizeof(f));
#undef REFUSED
	f = good_elf();
	assert_true(load_elf(&f, 20, &gm, &k) < 0);
	assert_true(load_elf(&f, sizeof(f.eh) + 5, &gm, &k) < 0);
	gmem_free(&gm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ioapic_delivers),
		cmocka_unit_test(test_ioapic_registers),
		cmocka_unit_test(test_ioapic_save_load_save),
		cmocka_unit_test(test_console_ring),
		cmocka_unit_test(test_gmem_bounds),
		cmocka_unit_test(test_acpi_tables),
		cmocka_unit_test(test_elf_loader),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
