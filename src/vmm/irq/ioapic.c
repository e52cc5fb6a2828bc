/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 82093AA IOAPIC, as much of it as edge-triggered lines need: no EOI, no remote
 * IRR. Invariant: a pending bit is set only while its pin is masked.
 */
#include "vmm/irq/ioapic.h"

/* Register window (82093AA, section 3.1) and indirect registers (section 3.2). */
#define REG_SELECT  0x00
#define REG_WINDOW  0x10
#define IND_ID      0x00
#define IND_VERSION 0x01
#define IND_ARB     0x02
#define IND_REDIR   0x10

#define VERSION_VALUE (0x11u | (IOAPIC_PINS - 1) << 16)
#define ID_MASK       0x0f000000u

/* Redirection entry, low half. */
#define REDIR_VECTOR    0xffull
#define REDIR_DELIVERY  0x700ull
#define REDIR_DEST_MODE (1ull << 11)
#define REDIR_READONLY  (1ull << 12 | 1ull << 14) /* delivery status, remote IRR */
#define REDIR_MASKED    (1ull << 16)
#define REDIR_LOW_VALID 0x1ffffull
#define REDIR_DEST      0xff00000000000000ull

#define MSI_ADDRESS 0xfee00000u

void ioapic_init(struct ioapic *io, ioapic_deliver_fn *deliver, void *arg)
{
	*io = (struct ioapic){.deliver = deliver, .arg = arg};
	for (unsigned int i = 0; i < IOAPIC_PINS; i++)
		io->s.redir[i] = REDIR_MASKED;
}

static void ioapic_service(struct ioapic *io, unsigned int pin)
{
	uint64_t e = io->s.redir[pin];
	uint32_t address, data;

	if (!(io->s.pending & 1u << pin) || (e & REDIR_MASKED))
		return;
	io->s.pending &= ~(1u << pin);
	address = MSI_ADDRESS | (uint32_t)(e >> 56) << 12 | (e & REDIR_DEST_MODE ? 1u << 2 : 0);
	data = (uint32_t)(e & (REDIR_VECTOR | REDIR_DELIVERY));
	io->deliver(io->arg, address, data);
}

void ioapic_raise(struct ioapic *io, unsigned int pin)
{
	if (pin >= IOAPIC_PINS)
		return;
	io->s.pending |= 1u << pin;
	ioapic_service(io, pin);
}

uint32_t ioapic_read(const struct ioapic *io, uint64_t off)
{
	uint32_t n;

	if (off == REG_SELECT)
		return io->s.select;
	if (off != REG_WINDOW)
		return 0;
	switch (io->s.select) {
	case IND_ID:
	case IND_ARB:
		return io->s.id;
	case IND_VERSION:
		return VERSION_VALUE;
	default:
		n = io->s.select - IND_REDIR;
		if (io->s.select < IND_REDIR || n >= 2 * IOAPIC_PINS)
			return 0;
		return (uint32_t)(io->s.redir[n / 2] >> (n % 2 ? 32 : 0));
	}
}

static uint64_t redir_sanitize(uint64_t e)
{
	return e & (REDIR_DEST | REDIR_LOW_VALID) & ~REDIR_READONLY;
}

void ioapic_write(struct ioapic *io, uint64_t off, uint32_t val)
{
	uint64_t e;
	uint32_t n;

	if (off == REG_SELECT) {
		io->s.select = val & 0xff;
		return;
	}
	if (off != REG_WINDOW)
		return;
	if (io->s.select == IND_ID) {
		io->s.id = val & ID_MASK;
		return;
	}
	n = io->s.select - IND_REDIR;
	if (io->s.select < IND_REDIR || n >= 2 * IOAPIC_PINS)
		return;
	e = io->s.redir[n / 2];
	if (n % 2)
		e = (e & 0xffffffffull) | (uint64_t)val << 32;
	else
		e = (e & ~0xffffffffull) | val;
	io->s.redir[n / 2] = redir_sanitize(e);
	/* Unmasking delivers what came in the meantime. */
	ioapic_service(io, n / 2);
}

void ioapic_save(const struct ioapic *io, struct ioapic_state *out)
{
	*out = io->s;
}

void ioapic_load(struct ioapic *io, const struct ioapic_state *in)
{
	io->s = *in;
	io->s.select &= 0xff;
	io->s.id &= ID_MASK;
	io->s.pending &= (1u << IOAPIC_PINS) - 1;
	for (unsigned int i = 0; i < IOAPIC_PINS; i++)
		io->s.redir[i] = redir_sanitize(in->redir[i]);
}
