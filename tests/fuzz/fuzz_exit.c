/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest can make its processor do: a whole machine, booted on a KVM that is played, gets a
 * script of exits. Accesses to ports and to memory, of any size and at any place, reach the devices
 * behind them; the host opens streams and looks after its loop. What is behind no device reads as
 * ones and does nothing; a machine ends when it must, and not otherwise.
 */
#define _GNU_SOURCE
#include "fake_kvm.h"
#include "input.h"

#include "proto/guest.h"
#include "vmm/boot/acpi.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIO_OFFSET 4096u
#define QUEUE      8u
#define RING(d, q) (0x100000u + ((d)*4 + (q)) * 0x3000u)
#define BUFFERS    0x200000u
#define HOST_ENDS  8u

struct world {
	struct loop loop;
	struct machine m;
	struct kvm_run *run;
	uint64_t console, rom_writes, status; /* that there must be */
	uint8_t lcr;
	unsigned told; /* status reports that arrived */
	bool ended;
	int host[HOST_ENDS];
	unsigned nhost;
};

static void on_status(void *arg, uint32_t code)
{
	struct world *w = arg;

	(void)code;
	MUST(++w->told <= MACHINE_MAX_STATUS && w->told <= w->status);
}

static void on_connected(void *arg, uint32_t cookie)
{
	(void)arg;
	MUST(cookie < HOST_ENDS);
}

static void on_refused(void *arg, uint32_t cookie, int errnum)
{
	(void)arg;
	MUST(cookie < HOST_ENDS && errnum > 0);
}

static int on_asked(void *arg, uint32_t id)
{
	struct world *w = arg;

	if (id % 3 == 0)
		return -EAGAIN;
	if (id % 3 == 1)
		machine_reject(&w->m, id);
	return 0;
}

static void on_disk_failed(void *arg, int errnum, uint64_t failures)
{
	(void)arg;
	(void)errnum;
	MUST(!failures); /* the host's storage works */
}

static void on_ended(void *arg, const struct exit_reason *why)
{
	(void)arg;
	MUST(why->code >= CTL_EXIT_RESET && why->code <= CTL_EXIT_STOPPED && why->text[0]);
}

/* --- exits ------------------------------------------------------------------------------- */

static void handle(struct world *w, bool end)
{
	struct exit_reason why = {0};
	int rc = exit_handle(&w->m, &w->m.vcpus[0], &why);

	MUST(rc == end && end == (why.code != 0));
	if (rc) {
		machine_end(&w->m, &why);
		w->ended = true;
	}
}

/* What a write to a port must do. True: it ends the machine. */
static bool expect_out(struct world *w, uint16_t port, unsigned size, uint32_t val)
{
	if (port == CONSOLE_PORT_BASE && size == 1 && !(w->lcr & 0x80))
		w->console++;
	if (port == CONSOLE_PORT_BASE + 3 && size == 1)
		w->lcr = (uint8_t)val;
	if (port == GUEST_STATUS_PORT && size == 4)
		w->status++;
	return port == ACPI_SLEEP_CONTROL_PORT && val & ACPI_SLEEP_ENABLE;
}

static bool is_device_port(uint16_t port)
{
	return (port >= CONSOLE_PORT_BASE && port < CONSOLE_PORT_BASE + CONSOLE_PORT_LEN) ||
	       port == 0xcf8 || port == GUEST_STATUS_PORT || port == ACPI_SLEEP_CONTROL_PORT ||
	       port == ACPI_SLEEP_STATUS_PORT;
}

/* All of them are as they were. */
UNGUIDED static void untouched(const uint8_t *data, unsigned from, unsigned end)
{
	for (unsigned i = from; i < end; i++)
		MUST(data[i] == 0xa5);
}

static void port_exit(struct world *w, struct input *in)
{
	static const uint16_t ports[] = {CONSOLE_PORT_BASE,       0xcf8, GUEST_STATUS_PORT,
					 ACPI_SLEEP_CONTROL_PORT, 0xcfc, 0x40};
	uint8_t op = input_u8(in), *data = (uint8_t *)w->run + PIO_OFFSET;
	unsigned size = 1u << op % 3, count = 1 + (op >> 2) % 8, bytes = size * count;
	uint16_t port = op & 0x80 ? (uint16_t)input_int(in, 2)
				  : (uint16_t)(ports[input_u8(in) % 6] + input_u8(in) % 9);
	bool out = op & 0x20, end = false;

	memset(data, 0xa5, 4096);
	w->run->exit_reason = KVM_EXIT_IO;
	w->run->io.direction = out ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	w->run->io.size = (uint8_t)size;
	w->run->io.port = port;
	w->run->io.count = count;
	w->run->io.data_offset = PIO_OFFSET;
	if (out)
		input_bytes(in, data, bytes);
	for (unsigned i = 0; out && i < count && !end; i++) {
		uint32_t val = 0;

		memcpy(&val, data + i * size, size);
		end = expect_out(w, port, size, val);
	}
	handle(w, end);
	for (unsigned i = 0; !out && !is_device_port(port) && i < bytes; i++)
		MUST(data[i] == 0xff);
	untouched(data, bytes, 4096);
}

static void access_memory(struct world *w, uint64_t gpa, bool write, unsigned len, uint64_t val)
{
	w->run->exit_reason = KVM_EXIT_MMIO;
	w->run->mmio.phys_addr = gpa;
	w->run->mmio.is_write = write;
	w->run->mmio.len = len;
	memcpy(w->run->mmio.data, &val, 8);
	handle(w, false);
}

static void reg(struct world *w, unsigned dev, uint32_t off, uint32_t v)
{
	access_memory(w, VM_MMIO_BASE + dev * VM_MMIO_STRIDE + off, true, 4, v);
}

static void memory_exit(struct world *w, struct input *in)
{
	uint8_t op = input_u8(in);
	bool write = op & 0x80;
	unsigned len = 1 + (op >> 4) % 8;
	uint64_t gpa, val = 0;

	switch (op % 6) {
	case 0:
	case 1:
		gpa = VM_MMIO_BASE + op % 6 * VM_MMIO_STRIDE + input_int(in, 2) % 0x200;
		break;
	case 2:
		gpa = VM_IOAPIC_BASE + (input_u8(in) % 2 ? 0x10 : input_u8(in) % 0x14);
		break;
	case 3:
		gpa = w->m.root.gpa + input_int(in, 3) % (w->m.root.size + 16);
		break;
	case 4:
		gpa = VM_MMIO_BASE + input_int(in, 2);
		break;
	default:
		gpa = input_int(in, 8);
		break;
	}
	if (write)
		val = input_int(in, len);
	w->rom_writes += write && gpa >= w->m.root.gpa && gpa - w->m.root.gpa < w->m.root.size;
	access_memory(w, gpa, write, len, val);
	if (!write && (op % 6 == 3 || (op % 6 == 5 && gpa >= VM_IOAPIC_BASE + IOAPIC_MMIO_LEN)))
		for (unsigned i = 0; i < 8; i++)
			MUST(w->run->mmio.data[i] == 0xff);
}

static void other_exit(struct world *w, struct input *in)
{
	uint32_t reason = input_u8(in) % 40;

	if (reason == KVM_EXIT_IO || reason == KVM_EXIT_MMIO)
		return;
	w->run->exit_reason = reason;
	handle(w, reason != KVM_EXIT_INTR && reason != KVM_EXIT_IRQ_WINDOW_OPEN &&
			  reason != KVM_EXIT_IOAPIC_EOI);
}

/* --- a driver ---------------------------------------------------------------------------- */

static void start_driver(struct world *w, unsigned dev)
{
	static const uint32_t steps[] = {0, 1, 3};

	for (unsigned i = 0; i < 3; i++)
		reg(w, dev, VIRTIO_MMIO_STATUS, steps[i]);
	reg(w, dev, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	reg(w, dev, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	reg(w, dev, VIRTIO_MMIO_STATUS, 0xb);
	for (uint32_t q = 0; q < (dev == MACHINE_DEV_VSOCK ? 3u : 1u); q++) {
		memset(w->m.ram.base + RING(dev, q), 0, 0x3000);
		reg(w, dev, VIRTIO_MMIO_QUEUE_SEL, q);
		reg(w, dev, VIRTIO_MMIO_QUEUE_NUM, QUEUE);
		reg(w, dev, VIRTIO_MMIO_QUEUE_DESC_LOW, RING(dev, q));
		reg(w, dev, VIRTIO_MMIO_QUEUE_DRIVER_LOW, RING(dev, q) + 0x1000);
		reg(w, dev, VIRTIO_MMIO_QUEUE_DEVICE_LOW, RING(dev, q) + 0x2000);
		reg(w, dev, VIRTIO_MMIO_QUEUE_READY, 1);
	}
	reg(w, dev, VIRTIO_MMIO_STATUS, 0xf);
}

/* A chain of descriptors with lengths and flags from the input, offered and notified. */
static void offer(struct world *w, struct input *in)
{
	uint8_t how = input_u8(in);
	unsigned dev = how & 1, q = how / 2 % 3, n = 1 + how / 8 % 4;
	uint8_t *ring = w->m.ram.base + RING(dev, q);
	uint16_t idx;

	for (unsigned i = 0; i < n; i++) {
		uint64_t addr = BUFFERS + (uint64_t)i * 0x1000;
		uint64_t word = input_int(in, 2) % 0x1000 | (uint64_t)(input_u8(in) & 2) << 32 |
				(i + 1 < n ? 1ull << 32 : 0) | (uint64_t)(i + 1) << 48;

		memcpy(ring + 16 * i, &addr, 8);
		memcpy(ring + 16 * i + 8, &word, 8);
	}
	memcpy(&idx, ring + 0x1002, 2);
	ring[0x1004 + 2 * (idx % QUEUE)] = ring[0x1005 + 2 * (idx % QUEUE)] = 0;
	idx++;
	memcpy(ring + 0x1002, &idx, 2);
	reg(w, dev, VIRTIO_MMIO_QUEUE_NOTIFY, q);
}

/* The first bytes of a buffer: headers of packets and requests. */
static void fill(struct world *w, struct input *in)
{
	uint8_t how = input_u8(in);

	input_bytes(in, w->m.ram.base + BUFFERS + how % 4 * 0x1000, how / 4 % 64);
}

/* A state of the serial port from somebody who is not trusted: what it says can be read. */
static void load_console(struct world *w, struct input *in)
{
	struct console_state s, back;

	input_bytes(in, &s, sizeof(s));
	console_load(&w->m.console, &s);
	console_save(&w->m.console, &back);
	MUST(back.lcr == s.lcr && back.ier <= 0x0f && back.mcr <= 0x1f);
	w->lcr = s.lcr;
	for (unsigned i = 0; i < 2 * CONSOLE_PORT_LEN; i++)
		console_read(&w->m.console, i);
}

/* --- the host ---------------------------------------------------------------------------- */

static void host_acts(struct world *w, struct input *in)
{
	uint8_t what = input_u8(in);
	uint64_t stats[CTL_STAT_COUNT];
	int sv[2];

	switch (what % 5) {
	case 4:
		load_console(w, in);
		break;
	case 0:
		if (w->nhost == HOST_ENDS)
			break;
		MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
		machine_connect(&w->m, what, sv[1], w->nhost);
		w->host[w->nhost++] = sv[0];
		break;
	case 1:
		machine_set_egress(&w->m, what & 0x80);
		break;
	case 2:
		machine_stats(&w->m, stats);
		MUST(stats[CTL_STAT_ROM_WRITES] == w->rom_writes && !stats[CTL_STAT_DISK_ERRORS]);
		break;
	default:
		if (w->nhost)
			MUST(send(w->host[what / 4 % w->nhost], &what, 1, MSG_NOSIGNAL) != 0);
		break;
	}
}

static void step(struct world *w, struct input *in)
{
	uint8_t op = input_u8(in);

	switch (op % 8) {
	case 0:
		port_exit(w, in);
		break;
	case 1:
	case 2:
		memory_exit(w, in);
		break;
	case 3:
		start_driver(w, op >> 7);
		break;
	case 4:
		fill(w, in);
		offer(w, in);
		break;
	case 5:
		fill(w, in);
		break;
	case 6:
		if (op & 0x80)
			other_exit(w, in);
		else
			host_acts(w, in);
		break;
	case 7:
		MUST(loop_run_once(&w->loop, 0) == 0);
		break;
	}
	MUST(w->m.console.ring->total == w->console && w->m.rom_writes == w->rom_writes);
	MUST(w->m.nstatus == (w->status < MACHINE_MAX_STATUS ? w->status : MACHINE_MAX_STATUS));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;
	const struct machine_events events = {on_status,      on_connected, on_refused, on_asked,
					      on_disk_failed, on_ended,     &w};
	struct machine_config cfg;
	struct input in = {data, size};
	struct err err = {0};

	memset(&w, 0, sizeof(w));
	fake_kvm_begin();
	cfg = fake_kvm_config();
	MUST(loop_init(&w.loop) == 0);
	machine_init(&w.m, &w.loop, &events);
	MUST(machine_boot(&w.m, &cfg, &err) == 0);
	w.run = w.m.vcpus[0].run;
	while (in.left && !w.ended)
		step(&w, &in);
	MUST(loop_run_once(&w.loop, 0) == 0);
	fake_kvm_drop(&w.m);
	loop_free(&w.loop);
	fake_kvm_end();
	return 0;
}
