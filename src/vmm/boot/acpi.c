/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Static ACPI tables (ACPI 6.4, chapters 5 and 20). Built once in a local
 * buffer that mirrors the guest's area, then copied; every append is checked
 * against the area, so a wrong count cannot write past it.
 */
#include "vmm/boot/acpi.h"
#include "vmm/core/vm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* AML opcodes (ACPI 6.4, section 20.3). */
#define AML_NAME    0x08
#define AML_BYTE    0x0a
#define AML_STRING  0x0d
#define AML_SCOPE   0x10
#define AML_BUFFER  0x11
#define AML_PACKAGE 0x12
#define AML_EXT     0x5b
#define AML_DEVICE  0x82

/* FADT fields (section 5.2.9). */
#define FADT_LEN           276
#define FADT_BOOT_ARCH     109
#define FADT_FLAGS         112
#define FADT_X_DSDT        140
#define FADT_SLEEP_CONTROL 244
#define FADT_SLEEP_STATUS  256
#define FADT_FL_PWR_BUTTON (1u << 4)
#define FADT_FL_SLP_BUTTON (1u << 5)
#define FADT_FL_HW_REDUCED (1u << 20)
#define FADT_ARCH_NO_VGA   (1u << 2)
#define FADT_ARCH_NO_RTC   (1u << 5)

#define SDT_HEADER 36
#define AML_MAX    2048

struct bytes {
	uint8_t data[AML_MAX];
	size_t len;
	int overflow;
};

static void add(struct bytes *b, const void *p, size_t n)
{
	if (n > sizeof(b->data) - b->len) {
		b->overflow = 1;
		return;
	}
	memcpy(b->data + b->len, p, n);
	b->len += n;
}

static void add8(struct bytes *b, unsigned int v)
{
	uint8_t c = (uint8_t)v;

	add(b, &c, 1);
}

static void add32(struct bytes *b, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		add8(b, v >> (8 * i) & 0xff);
}

/* PkgLength (20.2.4) counts itself: one byte up to 63, two up to 4095. */
static void add_package(struct bytes *out, const struct bytes *body)
{
	size_t n = body->len + 1;

	out->overflow |= body->overflow;
	if (n <= 63) {
		add8(out, (unsigned int)n);
	} else {
		n = body->len + 2;
		add8(out, 0x40 | (unsigned int)(n & 15));
		add8(out, (unsigned int)(n >> 4));
	}
	add(out, body->data, body->len);
}

static void add_name(struct bytes *b, const char *name)
{
	add8(b, AML_NAME);
	add(b, name, 4);
}

/* _CRS of one window: Memory32Fixed and an edge-triggered, active-high interrupt (6.4.3). */
static void add_resources(struct bytes *dev, unsigned int i)
{
	struct bytes crs = {.len = 0}, buffer = {.len = 0};

	add8(&crs, 0x86);
	add(&crs, "\x09\x00\x01", 3);
	add32(&crs, (uint32_t)(VM_MMIO_BASE + i * VM_MMIO_STRIDE));
	add32(&crs, (uint32_t)VM_MMIO_STRIDE);
	add8(&crs, 0x89);
	add(&crs, "\x06\x00\x03\x01", 4);
	add32(&crs, VM_MMIO_GSI + i);
	add(&crs, "\x79\x00", 2);

	add8(&buffer, AML_BYTE);
	add8(&buffer, (unsigned int)crs.len);
	add(&buffer, crs.data, crs.len);
	add_name(dev, "_CRS");
	add8(dev, AML_BUFFER);
	add_package(dev, &buffer);
}

static void add_device(struct bytes *scope, unsigned int i)
{
	struct bytes dev = {.len = 0};
	char name[8];

	snprintf(name, sizeof(name), "VIO%X", i & 0xf);
	add(&dev, name, 4);
	add_name(&dev, "_HID");
	add8(&dev, AML_STRING);
	add(&dev, "LNRO0005", 9);
	add_name(&dev, "_UID");
	add8(&dev, AML_BYTE);
	add8(&dev, i);
	add_resources(&dev, i);
	add8(scope, AML_EXT);
	add8(scope, AML_DEVICE);
	add_package(scope, &dev);
}

static void build_dsdt(struct bytes *out, unsigned int ndevs)
{
	struct bytes scope = {.len = 0}, s5 = {.len = 0};

	/* \_S5: sleep type 5; Linux powers off only when the object exists. */
	add(&s5, "\x04\x0a\x05\x0a\x05\x00\x00", 7);
	add_name(out, "_S5_");
	add8(out, AML_PACKAGE);
	add_package(out, &s5);

	add(&scope, "\\_SB_", 5);
	for (unsigned int i = 0; i < ndevs; i++)
		add_device(&scope, i);
	add8(out, AML_SCOPE);
	add_package(out, &scope);
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, sizeof(v));
}

/* Generic address of an 8-bit I/O port (5.2.3.2). */
static void put_port(uint8_t *p, uint16_t port)
{
	p[0] = 1;
	p[1] = 8;
	p[3] = 1;
	put64(p + 4, port);
}

static uint8_t checksum(const uint8_t *p, size_t n)
{
	uint8_t s = 0;

	while (n--)
		s = (uint8_t)(s + *p++);
	return (uint8_t)-s;
}

/* Cursor over the area of the tables. */
struct area {
	uint8_t *mem;
	uint64_t used;
};

static uint8_t *area_take(struct area *a, size_t len, uint64_t *gpa)
{
	uint8_t *p;

	if (len > ACPI_SIZE - a->used)
		return NULL;
	p = a->mem + a->used;
	*gpa = ACPI_BASE + a->used;
	a->used = (a->used + len + 15) & ~15ull;
	return p;
}

static void sdt_finish(uint8_t *t, const char *sig, size_t len, uint8_t revision)
{
	memcpy(t, sig, 4);
	put32(t + 4, (uint32_t)len);
	t[8] = revision;
	memcpy(t + 10, "PODFLR", 6);
	memcpy(t + 16, "PODFLARE", 8);
	put32(t + 24, 1);
	memcpy(t + 28, "PDFL", 4);
	put32(t + 32, 1);
	t[9] = 0;
	t[9] = checksum(t, len);
}

static uint64_t put_dsdt(struct area *a, unsigned int ndevs)
{
	struct bytes aml = {.len = 0};
	uint64_t gpa = 0;
	uint8_t *t;

	build_dsdt(&aml, ndevs);
	t = aml.overflow ? NULL : area_take(a, SDT_HEADER + aml.len, &gpa);
	if (!t)
		return 0;
	memcpy(t + SDT_HEADER, aml.data, aml.len);
	sdt_finish(t, "DSDT", SDT_HEADER + aml.len, 2);
	return gpa;
}

static uint64_t put_fadt(struct area *a, uint64_t dsdt)
{
	uint64_t gpa = 0;
	uint8_t *t = area_take(a, FADT_LEN, &gpa);

	if (!t)
		return 0;
	put32(t + FADT_FLAGS, FADT_FL_HW_REDUCED | FADT_FL_PWR_BUTTON | FADT_FL_SLP_BUTTON);
	t[FADT_BOOT_ARCH] = FADT_ARCH_NO_VGA | FADT_ARCH_NO_RTC;
	put64(t + FADT_X_DSDT, dsdt);
	put_port(t + FADT_SLEEP_CONTROL, ACPI_SLEEP_CONTROL_PORT);
	put_port(t + FADT_SLEEP_STATUS, ACPI_SLEEP_STATUS_PORT);
	sdt_finish(t, "FACP", FADT_LEN, 6);
	return gpa;
}

static uint64_t put_madt(struct area *a, unsigned int ncpus)
{
	size_t len = SDT_HEADER + 8 + 8 * (size_t)ncpus + 12;
	uint64_t gpa = 0;
	uint8_t *t = area_take(a, len, &gpa), *p;

	if (!t)
		return 0;
	put32(t + SDT_HEADER, (uint32_t)VM_LAPIC_BASE);
	p = t + SDT_HEADER + 8;
	for (unsigned int i = 0; i < ncpus; i++, p += 8) {
		/* Local APIC (5.2.12.2): type 0, length 8, uid, id, enabled. */
		p[1] = 8;
		p[2] = p[3] = (uint8_t)i;
		p[4] = 1;
	}
	/* IOAPIC (5.2.12.3): type 1, length 12, address, GSI base 0. */
	p[0] = 1;
	p[1] = 12;
	put32(p + 4, (uint32_t)VM_IOAPIC_BASE);
	sdt_finish(t, "APIC", len, 4);
	return gpa;
}

int acpi_build(const struct gmem *ram, unsigned int ncpus, unsigned int ndevs, struct err *err)
{
	struct area a = {.mem = gmem_slice(ram, ACPI_BASE, ACPI_SIZE)};
	uint64_t rsdp_gpa = 0, xsdt_gpa = 0, dsdt, fadt, madt;
	uint8_t *rsdp, *xsdt;

	if (!a.mem)
		return err_text(err, EINVAL, "no guest memory at the ACPI area");
	memset(a.mem, 0, ACPI_SIZE);
	rsdp = area_take(&a, 36, &rsdp_gpa);
	xsdt = area_take(&a, SDT_HEADER + 16, &xsdt_gpa);
	dsdt = put_dsdt(&a, ndevs);
	fadt = put_fadt(&a, dsdt);
	madt = put_madt(&a, ncpus);
	if (!rsdp || !xsdt || !dsdt || !fadt || !madt)
		return err_text(err, ENOSPC, "ACPI tables for %u processors do not fit", ncpus);
	put64(xsdt + SDT_HEADER, fadt);
	put64(xsdt + SDT_HEADER + 8, madt);
	sdt_finish(xsdt, "XSDT", SDT_HEADER + 16, 1);
	memcpy(rsdp, "RSD PTR ", 8);
	memcpy(rsdp + 9, "PODFLR", 6);
	rsdp[15] = 2;
	put32(rsdp + 20, 36);
	put64(rsdp + 24, xsdt_gpa);
	rsdp[8] = checksum(rsdp, 20);
	rsdp[32] = checksum(rsdp, 36);
	return 0;
}
