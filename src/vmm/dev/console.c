/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transmit-only 16550. The transmitter is always empty, so the guest never
 * waits; no interrupt is ever pending.
 */
#include "vmm/dev/console.h"
#include "lib/io.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>

/* Registers of the 16550 (offset; DLAB in LCR exchanges the first two for the divisor). */
enum { REG_THR, REG_IER, REG_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

#define LCR_DLAB       0x80
#define IIR_NONE       0x01
#define LSR_TX_EMPTY   0x60
#define MSR_CARRIER_UP 0xb0

_Static_assert(sizeof(struct console_ring) == CONSOLE_RING_SIZE, "console ring layout");

int console_init(struct console *c, int fd, struct err *err)
{
	int64_t size = io_size(fd);
	void *p;

	*c = (struct console){0};
	if (size < 0)
		return err_set(err, (int)-size, "the console ring");
	if (size != CONSOLE_RING_SIZE)
		return err_text(err, EINVAL, "the console ring must have %u bytes",
				CONSOLE_RING_SIZE);
	p = mmap(NULL, CONSOLE_RING_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return err_set(err, errno, "cannot map the console ring");
	c->ring = p;
	return 0;
}

int console_replace(struct console *c, int fd, struct err *err)
{
	struct console_state regs = c->s;
	int rc;

	console_free(c);
	rc = console_init(c, fd, err);
	c->s = regs;
	return rc;
}

void console_free(struct console *c)
{
	if (c->ring)
		munmap(c->ring, CONSOLE_RING_SIZE);
	c->ring = NULL;
}

static void console_put(struct console *c, uint8_t ch)
{
	uint64_t n = atomic_load_explicit(&c->ring->total, memory_order_relaxed);

	c->ring->data[n % CONSOLE_RING_DATA] = ch;
	/* Pairs with the daemon's acquire load: the byte is there before it is counted. */
	atomic_store_explicit(&c->ring->total, n + 1, memory_order_release);
}

uint8_t console_read(const struct console *c, unsigned int reg)
{
	int dlab = c->s.lcr & LCR_DLAB;

	switch (reg) {
	case REG_THR:
		return dlab ? c->s.dll : 0;
	case REG_IER:
		return dlab ? c->s.dlm : c->s.ier;
	case REG_IIR:
		return IIR_NONE;
	case REG_LCR:
		return c->s.lcr;
	case REG_MCR:
		return c->s.mcr;
	case REG_LSR:
		return LSR_TX_EMPTY;
	case REG_MSR:
		return MSR_CARRIER_UP;
	case REG_SCR:
		return c->s.scratch;
	default:
		return 0;
	}
}

void console_write(struct console *c, unsigned int reg, uint8_t val)
{
	int dlab = c->s.lcr & LCR_DLAB;

	switch (reg) {
	case REG_THR:
		if (dlab)
			c->s.dll = val;
		else
			console_put(c, val);
		break;
	case REG_IER:
		if (dlab)
			c->s.dlm = val;
		else
			c->s.ier = val & 0x0f;
		break;
	case REG_LCR:
		c->s.lcr = val;
		break;
	case REG_MCR:
		c->s.mcr = val & 0x1f;
		break;
	case REG_SCR:
		c->s.scratch = val;
		break;
	default:
		break;
	}
}

void console_save(const struct console *c, struct console_state *out)
{
	*out = c->s;
}

void console_load(struct console *c, const struct console_state *in)
{
	c->s = *in;
	c->s.ier &= 0x0f;
	c->s.mcr &= 0x1f;
}
