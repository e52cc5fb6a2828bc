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
 * leaves neither processor ever again), flood=1 (instead: packets of vsock for ever).
 *
 * It spares what would only end itself: the power-off port, the local APIC, and
 * delivery modes that need handlers (NMI, INIT, SMI).
 */
#include <errno.h>

#include "hostile.h"

/* Of start.S: from where a processor starts, in pages; its copy of what it begins with. */
#define TRAMPOLINE 0x3000ull
extern const uint8_t trampoline[], trampoline_end[];

#define LAPIC       0xfee00000ull
#define SLEEP_PORT  0xf20
#define CONSOLE     0x3f8
#define E820_OFFSET 0x2d0
#define E820_PMEM   12u /* type of the root image's entry */

#define LAPIC_SPURIOUS 0xf0
#define LAPIC_ICR_LOW  0x300
#define LAPIC_ICR_HIGH 0x310

/* Linux's UAPI, linux/kvm_para.h, whose errors are those of errno but for one. */
#define HC_VAPIC_POLL_IRQ 1
#define HC_CLOCK_PAIRING  9
#define HC_ENOSYS         1000

static const char *const names[WHATS] = {
	" drivers=",   " blk-runs=", " vsock-runs=", " notifies=", " blk-chains=", " vsock-chains=",
	" registers=", " ports=",    " memory=",     " ioapic=",   " hypercalls=",
};
static uint32_t counts[WHATS];

void count(enum what w)
{
	__sync_fetch_and_add(&counts[w], 1);
}

uint64_t rom;
static uint64_t rom_size;
static volatile uint32_t wrong; /* what a hypercall should not have answered */

/* What the second processor is told and tells. */
static volatile uint64_t second_seed;
static volatile int second_spins, second_floods, second_stop, second_runs, second_done;

/* Each processor has a generator of its own, where its GS base leads. */
static void set_seed(uint64_t seed)
{
	__asm__ volatile("movq %0, %%gs:0" : : "r"(seed * 0x9e3779b97f4a7c15ull | 1));
}

uint64_t next(void)
{
	uint64_t seed;

	__asm__ volatile("movq %%gs:0, %0" : "=r"(seed));
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	__asm__ volatile("movq %0, %%gs:0" : : "r"(seed));
	return seed * 0x2545f4914f6cdd1dull;
}

uint32_t any(uint32_t n)
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

static void put(uint16_t port, char c)
{
	__asm__ volatile("outb %b0, %1" : : "a"(c), "Nd"(port));
}

void say(const char *text, uint32_t n)
{
	char digits[12];
	int k = 0;

	put(CONSOLE + 3, 3); /* no divisor, whatever any_port() did */
	while (*text)
		put(CONSOLE, *text++);
	do
		digits[k++] = (char)('0' + n % 10);
	while (n /= 10);
	while (k)
		put(CONSOLE, digits[--k]);
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
	case 0 ... 3:
		count(DRIVERS);
		begin_like_a_driver(device);
		break;
	case 4 ... 29:
		count(NOTIFIES);
		notify(device);
		break;
	case 30 ... 45:
		count(REGISTERS);
		any_register();
		break;
	case 46 ... 52:
		count(PORTS);
		any_port();
		break;
	case 53 ... 57:
		count(MEMORY);
		any_memory();
		break;
	case 58 ... 61:
		count(IOAPICS);
		any_ioapic();
		break;
	default:
		count(HYPERCALLS);
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
	while (second_floods) /* beside the other one, for the same queue */
		set(VSOCK, VIRTIO_MMIO_QUEUE_NOTIFY, VSOCK_QUEUE_TX);
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
	second_floods = (int)option(line, "flood=", 0);
	second_seed = ~option(line, "seed=", 1);
	set_seed(option(line, "seed=", 1));
	image = checksum();
	start_second();
	while (second_spins)
		;
	if (second_floods) {
		report(driver_floods());
		return;
	}
	while (ops--)
		step();
	second_stop = 1;
	while (!second_done)
		__builtin_ia32_pause();
	say("\ncounts of=", WHATS);
	for (uint32_t w = 0; w < WHATS; w++)
		say(names[w], counts[w]);
	rc = wrong;
	if (!rc)
		rc = checksum() == image ? driver_works() : 0x230;
	report(rc ? rc : 1);
}
