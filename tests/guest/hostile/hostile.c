/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that is nobody's friend: it does to its devices, ports and memory map
 * what no driver does, at random, on two processors at once, which meet in the
 * same devices; each does the same for the same seed. It has no kernel, so that
 * nothing stands between it and the VMM. By the end it resets both devices and
 * uses them as a driver would, looks at the root image, and reports 1 when all
 * is well.
 *
 * Words of its command line: seed=N, ops=N (steps to be made), spin=1 (instead:
 * leaves neither processor ever again).
 *
 * It spares what would only end itself: the power-off port, the local APIC, and
 * delivery modes that need handlers (NMI, INIT, SMI).
 */
#include <errno.h>

#include "hostile.h"
#include "proto/guest.h"

/* Of start.S: from where a processor starts, in pages; its copy of what it begins with. */
#define TRAMPOLINE 0x3000ull
extern const uint8_t trampoline[], trampoline_end[];

#define IOAPIC      0xfec00000ull
#define LAPIC       0xfee00000ull
#define SLEEP_PORT  0xf20
#define CONSOLE     0x3f8
#define E820_OFFSET 0x2d0
#define E820_PMEM   12u /* type of the root image's entry */

#define LAPIC_SPURIOUS 0xf0
#define LAPIC_ICR_LOW  0x300
#define LAPIC_ICR_HIGH 0x310

#define STAGE ARENA /* rings of one queue are here, if they are where they should be */

/* Linux's UAPI, linux/kvm_para.h, whose errors are those of errno but for one. */
#define HC_VAPIC_POLL_IRQ 1
#define HC_CLOCK_PAIRING  9
#define HC_ENOSYS         1000

static uint64_t rom, rom_size;
static volatile uint32_t wrong; /* what a hypercall should not have answered */

/* What the second processor is told and tells. */
static volatile uint64_t second_seed;
static volatile int second_spins, second_stop, second_runs, second_done;

/* Each processor has a generator of its own, where its GS base leads. */
static void set_seed(uint64_t seed)
{
	__asm__ volatile("movq %0, %%gs:0" : : "r"(seed * 0x9e3779b97f4a7c15ull | 1));
}

static uint64_t next(void)
{
	uint64_t seed;

	__asm__ volatile("movq %%gs:0, %0" : "=r"(seed));
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	__asm__ volatile("movq %0, %%gs:0" : : "r"(seed));
	return seed * 0x2545f4914f6cdd1dull;
}

/* Below n. */
static uint32_t any(uint32_t n)
{
	return (uint32_t)(next() >> 33) % n;
}

static void out32(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}

static void report(uint32_t v)
{
	out32(GUEST_STATUS_PORT, v);
}

/* One access of one to eight bytes, wherever that is. */
static void touch(uint64_t at, int write, uint64_t v)
{
	switch (any(4)) {
	case 0:
		write ? (void)(*(volatile uint8_t *)at = (uint8_t)v)
		      : (void)*(volatile uint8_t *)at;
		break;
	case 1:
		write ? (void)(*(volatile uint16_t *)at = (uint16_t)v)
		      : (void)*(volatile uint16_t *)at;
		break;
	case 2:
		write ? (void)(*(volatile uint32_t *)at = (uint32_t)v)
		      : (void)*(volatile uint32_t *)at;
		break;
	default:
		write ? (void)(*(volatile uint64_t *)at = v) : (void)*(volatile uint64_t *)at;
	}
}

/* An address for a device: often good, often almost, often none. */
static uint64_t address(void)
{
	switch (any(14)) {
	case 0:
		return next();
	case 1:
		return MMIO_BASE + any(0x3000);
	case 2:
		return rom + any(0x10000);
	case 3:
		return RAM_END - any(64);
	case 4:
		return RAM_END + any(0x1000000);
	case 5:
		return IOAPIC + any(0x1000);
	case 6:
		return ~0ull - any(0x2000);
	case 7:
		return 0x100000000ull - any(0x40);
	case 8:
		return ARENA + any(ARENA_SIZE / 2); /* not aligned */
	default:
		return ARENA + 4096ull * any(ARENA_SIZE / 2 / 4096);
	}
}

static uint32_t length(void)
{
	static const uint32_t some[] = {0,   1,    15,       16,         44,
					512, 4096, 0x100000, 0x7fffffff, 0xffffffff};

	return any(3) ? some[any(sizeof(some) / sizeof(some[0]))] : (uint32_t)next();
}

static uint16_t size_of_queue(void)
{
	static const uint16_t some[] = {0, 1, 2, 3, 8, 64, 128, 256, 1024, 0x8000, 0xffff};

	return some[any(sizeof(some) / sizeof(some[0]))];
}

/* The bytes of a descriptor table, of rings and of what they point at, as the guest writes them. */
static void scribble(void)
{
	uint64_t base = STAGE + 4096ull * any(16);

	for (int i = 0; i < 16; i++) {
		uint64_t at = base + 16ull * any(256);

		*(volatile uint64_t *)at = address();
		*(volatile uint32_t *)(at + 8) = length();
		*(volatile uint16_t *)(at + 12) = (uint16_t)(any(4) ? any(8) : next());
		*(volatile uint16_t *)(at + 14) = (uint16_t)(any(4) ? any(8) : next());
	}
	/* As a ring of available ones: index, and heads. */
	*(volatile uint16_t *)(base + 2) = (uint16_t)(any(2) ? any(16) : next());
	for (int i = 0; i < 8; i++)
		*(volatile uint16_t *)(base + 4 + 2 * any(128)) =
			(uint16_t)(any(3) ? any(8) : next());
	/* As the head of a request to the disk, and as a packet of vsock. */
	base = ARENA + 4096ull * any(ARENA_SIZE / 2 / 4096);
	*(volatile uint32_t *)base = any(2) ? any(16) : (uint32_t)next();
	*(volatile uint64_t *)(base + 8) = any(2) ? any(4096) : next();
	base = ARENA + 4096ull * any(ARENA_SIZE / 2 / 4096);
	*(volatile uint64_t *)base = any(2) ? 3 : next();                    /* from */
	*(volatile uint64_t *)(base + 8) = any(2) ? VSOCK_CID_HOST : next(); /* to */
	*(volatile uint32_t *)(base + 16) = any(2) ? any(4) : (uint32_t)next();
	*(volatile uint32_t *)(base + 20) = any(2) ? GUEST_EGRESS_PORT : (uint32_t)next();
	*(volatile uint32_t *)(base + 24) = length();
	*(volatile uint16_t *)(base + 28) = VSOCK_TYPE_STREAM;
	*(volatile uint16_t *)(base + 30) = (uint16_t)(any(4) ? any(9) : next());
}

/* What a driver does, in a driver's order, with what no driver would say. */
static void begin_like_a_driver(uint64_t device)
{
	uint32_t queues = device == BLK ? 1 : VSOCK_QUEUES;

	set(device, VIRTIO_MMIO_STATUS, 0);
	set(device, VIRTIO_MMIO_STATUS, 1);
	set(device, VIRTIO_MMIO_STATUS, 3);
	for (uint32_t sel = 0; sel < 2; sel++) {
		set(device, VIRTIO_MMIO_DEVICE_FEATURES_SEL, sel);
		set(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, sel);
		set(device, VIRTIO_MMIO_DRIVER_FEATURES,
		    any(8) ? reg(device, VIRTIO_MMIO_DEVICE_FEATURES) : (uint32_t)next());
	}
	set(device, VIRTIO_MMIO_STATUS, 11);
	for (uint32_t q = 0; q < queues + any(2); q++) {
		set(device, VIRTIO_MMIO_QUEUE_SEL, any(16) ? q : (uint32_t)next());
		set(device, VIRTIO_MMIO_QUEUE_NUM, any(4) ? 1u << any(8) : size_of_queue());
		set_address(device, VIRTIO_MMIO_QUEUE_DESC_LOW,
			    any(4) ? STAGE + 4096ull * any(16) : address());
		set_address(device, VIRTIO_MMIO_QUEUE_DRIVER_LOW,
			    any(4) ? STAGE + 4096ull * any(16) : address());
		set_address(device, VIRTIO_MMIO_QUEUE_DEVICE_LOW, address());
		set(device, VIRTIO_MMIO_QUEUE_READY, any(16) ? 1 : (uint32_t)next());
	}
	set(device, VIRTIO_MMIO_STATUS, any(16) ? 15 : (uint32_t)next());
}

static void notify(uint64_t device)
{
	scribble();
	set(device, VIRTIO_MMIO_QUEUE_NOTIFY, any(8) ? any(4) : (uint32_t)next());
}

/* A register of a device, or what lies beside the registers, at any moment. */
static void any_register(void)
{
	uint64_t at = MMIO_BASE + 0x1000ull * any(3);

	at += any(4) ? 4ull * any(0x140 / 4) : any(0x1000);
	touch(at, any(3) != 0, any(2) ? any(16) : next());
}

/* The redirection table, but for what would need handlers here. */
static void any_ioapic(void)
{
	uint32_t index = any(4) ? any(0x40) : (uint32_t)next();

	set(IOAPIC, 0, index);
	if (any(2)) {
		(void)reg(IOAPIC, 0x10);
		return;
	}
	/* The low words of the table have the delivery mode in bits 8 to 10. */
	set(IOAPIC, 0x10, (uint32_t)next() & ~0x700u);
	if (any(8) == 0)
		(void)reg(IOAPIC, any(0x1000) & ~3u);
}

static void any_port(void)
{
	static uint8_t buf[64];
	uint16_t port = (uint16_t)(any(2) ? next() : any(0x400));
	uint32_t v = (uint32_t)next();
	void *p = buf;
	uint64_t n = sizeof(buf);

	/* Accesses of four bytes may begin in front of the ones to spare. */
	if ((port > GUEST_STATUS_PORT - 4 && port <= GUEST_STATUS_PORT) ||
	    (port > SLEEP_PORT - 4 && port <= SLEEP_PORT + 1))
		return;
	if (port > CONSOLE - 4 && port <= CONSOLE && any(64))
		return; /* a little noise is enough */
	switch (any(8)) {
	case 0:
		__asm__ volatile("outb %b0, %1" : : "a"(v), "Nd"(port));
		break;
	case 1:
		__asm__ volatile("outw %w0, %1" : : "a"(v), "Nd"(port));
		break;
	case 2:
		__asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
		break;
	case 3:
		__asm__ volatile("inb %1, %b0" : "=a"(v) : "Nd"(port));
		break;
	case 4:
		__asm__ volatile("inw %1, %w0" : "=a"(v) : "Nd"(port));
		break;
	case 5:
		__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
		break;
	case 6:
		__asm__ volatile("rep outsb" : "+S"(p), "+c"(n) : "d"(port) : "memory");
		break;
	default:
		__asm__ volatile("rep insb" : "+D"(p), "+c"(n) : "d"(port) : "memory");
	}
}

/* Memory that is not there, and the image that may not be written to. */
static void any_memory(void)
{
	uint64_t at;

	switch (any(4)) {
	case 0:
		at = rom + any(0x4000);
		break;
	case 1:
		at = RAM_END + any(0x40000000);
		break;
	case 2:
		at = 0x100000000ull + (next() & 0x7effffffffull) % 0x7e00000000ull;
		break;
	default:
		at = MMIO_BASE + 0x2000 + any(0x1000000);
	}
	touch(at, any(2) != 0, next());
}

/*
 * All are refused but two, which KVM answers whatever CPUID shows: one does nothing, and one writes
 * the host's time and this guest's TSC, as kvm-clock has them, to where the guest says, if the
 * host's clock is by its TSC and there is memory.
 */
static int is_answer(uint64_t call, int64_t r)
{
	switch (call) {
	case HC_VAPIC_POLL_IRQ:
		return r == 0;
	case HC_CLOCK_PAIRING:
		return r == 0 || r == -EFAULT || r == -EOPNOTSUPP;
	default:
		return r == -HC_ENOSYS;
	}
}

/* Calls to the hypervisor, which has nothing to give. */
static void any_hypercall(void)
{
	uint64_t call = any(4) ? any(16) : next(), rax = call;
	/* Of one between processors: its delivery mode, as any_ioapic(). */
	uint64_t rsi = next() & ~0x700ull;

	/* KVM takes either instruction on either kind of processor. */
	__asm__ volatile("vmmcall"
			 : "+a"(rax)
			 : "b"(next()), "c"(next()), "d"(next()), "S"(rsi)
			 : "memory");
	if (!is_answer(call, (int64_t)rax) && !wrong)
		wrong = 0x300 | (call < 0xff ? (uint32_t)call : 0xff);
}

static void step(void)
{
	uint64_t device = any(2) ? BLK : VSOCK;

	switch (any(64)) {
	case 0:
	case 1:
		begin_like_a_driver(device);
		break;
	case 2 ... 29:
		notify(device);
		break;
	case 30 ... 45:
		any_register();
		break;
	case 46 ... 52:
		any_port();
		break;
	case 53 ... 57:
		any_memory();
		break;
	case 58 ... 61:
		any_ioapic();
		break;
	default:
		any_hypercall();
	}
}

/* Of all of the root image, so that no write to it goes unnoticed, wherever it went. */
static uint64_t checksum(void)
{
	uint64_t sum = 0xcbf29ce484222325ull;

	for (uint64_t i = 0; i < rom_size; i += 8)
		sum = (sum ^ *(volatile uint64_t *)(rom + i)) * 0x100000001b3ull;
	return sum;
}

static void pause_for(uint32_t n)
{
	while (n--)
		__builtin_ia32_pause();
}

/* INIT and start-up, as Linux does (SDM 3A, 9.4.4), to local APIC 1. */
static void start_second(void)
{
	for (const uint8_t *from = trampoline; from < trampoline_end; from++)
		*(volatile uint8_t *)(TRAMPOLINE + (uint64_t)(from - trampoline)) = *from;
	set(LAPIC, LAPIC_SPURIOUS, 0x1ff); /* enabled, or it sends nothing */
	set(LAPIC, LAPIC_ICR_HIGH, 1u << 24);
	set(LAPIC, LAPIC_ICR_LOW, 0x4500);
	pause_for(10000);
	set(LAPIC, LAPIC_ICR_HIGH, 1u << 24);
	set(LAPIC, LAPIC_ICR_LOW, 0x4600 | TRAMPOLINE >> 12);
	while (!second_runs)
		__builtin_ia32_pause();
}

/* Where start.S brings the second processor. */
void hostile_second(void);
void hostile_second(void)
{
	second_runs = 1;
	while (second_spins)
		;
	set_seed(second_seed);
	while (!second_stop)
		step();
	second_done = 1;
}

/* The number behind a word of the command line, or `otherwise`. */
static uint64_t option(const char *line, const char *word, uint64_t otherwise)
{
	for (; *line; line++) {
		const char *p = line, *w = word;
		uint64_t n = 0;

		while (*w && *p == *w)
			p++, w++;
		if (*w)
			continue;
		for (; *p >= '0' && *p <= '9'; p++)
			n = n * 10 + (uint64_t)(*p - '0');
		return n;
	}
	return otherwise;
}

void hostile(const uint8_t *zero_page);
void hostile(const uint8_t *zero_page)
{
	const char *line = (const char *)(uintptr_t) * (const uint32_t *)(zero_page + 0x228);
	uint64_t image, ops = option(line, "ops=", 1000);
	uint32_t rc;

	for (uint32_t i = 0; i < zero_page[0x1e8]; i++) {
		const uint8_t *entry = zero_page + E820_OFFSET + 20 * i;

		if (*(const uint32_t *)(entry + 16) == E820_PMEM) {
			rom = *(const uint64_t *)entry;
			rom_size = *(const uint64_t *)(entry + 8);
		}
	}
	if (!rom) {
		report(0x101);
		return;
	}
	second_spins = (int)option(line, "spin=", 0);
	second_seed = ~option(line, "seed=", 1);
	set_seed(option(line, "seed=", 1));
	image = checksum();
	start_second();
	while (second_spins)
		;
	while (ops--)
		step();
	second_stop = 1;
	while (!second_done)
		__builtin_ia32_pause();
	rc = wrong;
	if (!rc)
		rc = checksum() == image ? driver_works() : 0x230;
	report(rc ? rc : 1);
}
