/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interrupt controller: any register access, edges on any line, save and load of any state.
 * A model beside it, pin by pin as the data sheet has it, says which messages must be delivered.
 */
#include "input.h"

#include "vmm/irq/ioapic.h"

struct pin {
	uint32_t low, high; /* as they read */
	bool pending;
};

struct model {
	struct pin pin[IOAPIC_PINS];
	uint32_t select, id;
	unsigned due; /* messages that are to come */
	uint32_t address, data;
	unsigned came;
};

/* 82093AA, 3.2.4: what can be written (the low half), and what makes a message. */
#define LOW_KEPT  0x1afffu
#define LOW_MASK  0x10000u
#define LOW_LOGIC 0x800u

static void on_deliver(void *arg, uint32_t address, uint32_t data)
{
	struct model *m = arg;

	MUST(m->due == 1 && m->came == 0);
	MUST(address == m->address && data == m->data);
	m->came++;
}

/* The pin's line has an edge that waits; it goes out unless the pin is masked. */
static void serve(struct model *m, struct pin *p)
{
	if (!p->pending || p->low & LOW_MASK)
		return;
	p->pending = false;
	m->due = 1;
	m->address = 0xfee00000u + ((p->high >> 24) << 12) + (p->low & LOW_LOGIC ? 4 : 0);
	m->data = p->low & 0x7ff;
}

static void model_write(struct model *m, uint32_t v)
{
	uint32_t n = (m->select - 0x10) / 2;

	if (m->select == 0)
		m->id = v & 0x0f000000;
	if (m->select < 0x10 || n >= IOAPIC_PINS)
		return;
	if (m->select & 1)
		m->pin[n].high = v & 0xff000000;
	else
		m->pin[n].low = v & LOW_KEPT;
	serve(m, &m->pin[n]);
}

static uint32_t model_read(const struct model *m)
{
	uint32_t n = (m->select - 0x10) / 2;

	if (m->select == 0 || m->select == 2)
		return m->id;
	if (m->select == 1)
		return 0x00170011;
	if (m->select < 0x10 || n >= IOAPIC_PINS)
		return 0;
	return m->select & 1 ? m->pin[n].high : m->pin[n].low;
}

/* The model of a state that was loaded. */
static void model_load(struct model *m, const struct ioapic_state *s)
{
	m->select = s->select & 0xff;
	m->id = s->id & 0x0f000000;
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		m->pin[i] = (struct pin){.low = (uint32_t)s->redir[i] & LOW_KEPT,
					 .high = (uint32_t)(s->redir[i] >> 32) & 0xff000000,
					 .pending = s->pending >> i & 1};
}

static void load(struct ioapic *io, struct model *m, struct input *in)
{
	struct ioapic_state s, back;

	ioapic_save(io, &s);
	if (input_u8(in) & 1) { /* from somebody who is not trusted */
		s.select = (uint32_t)input_int(in, 4);
		s.id = (uint32_t)input_int(in, 4);
		s.pending = (uint32_t)input_int(in, 4);
		s.redir[input_u8(in) % IOAPIC_PINS] = input_int(in, 8);
	}
	ioapic_init(io, on_deliver, m);
	ioapic_load(io, &s);
	model_load(m, &s);
	ioapic_save(io, &back);
	MUST(back.select == m->select && back.id == m->id && !(back.pending >> IOAPIC_PINS));
}

static void check(const struct ioapic *io, const struct model *m)
{
	for (unsigned i = 0; i < IOAPIC_PINS; i++) {
		MUST((io->s.pending >> i & 1) == m->pin[i].pending);
		MUST(io->s.redir[i] == ((uint64_t)m->pin[i].high << 32 | m->pin[i].low));
	}
}

static void step(struct ioapic *io, struct model *m, struct input *in)
{
	uint8_t op = input_u8(in);
	uint32_t v;
	uint64_t off;

	m->due = m->came = 0;
	switch (op % 5) {
	case 0: /* a register of the pins, or any other */
		v = (uint32_t)(op & 0x80 ? input_int(in, 4) : 0x10u + input_u8(in) % 48);
		ioapic_write(io, 0, v);
		m->select = v & 0xff;
		break;
	case 1:
		v = (uint32_t)input_int(in, 4);
		model_write(m, v);
		ioapic_write(io, 0x10, v);
		break;
	case 2:
		v = op & 0x80 ? (uint32_t)input_int(in, 4) : input_u8(in) % IOAPIC_PINS;
		if (v < IOAPIC_PINS) {
			m->pin[v].pending = true;
			serve(m, &m->pin[v]);
		}
		ioapic_raise(io, v);
		break;
	case 3: /* any place of the window: only two have something */
		off = input_int(in, 2) % IOAPIC_MMIO_LEN;
		MUST(ioapic_read(io, off) == (off == 0      ? m->select
					      : off == 0x10 ? model_read(m)
							    : 0));
		MUST(ioapic_read(io, 0x10) == model_read(m));
		if (off != 0 && off != 0x10)
			ioapic_write(io, off, (uint32_t)input_int(in, 4));
		break;
	case 4:
		load(io, m, in);
		break;
	}
	MUST(m->due == m->came);
	check(io, m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct model m = {0};
	struct ioapic io;

	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		m.pin[i].low = LOW_MASK;
	ioapic_init(&io, on_deliver, &m);
	while (in.left)
		step(&io, &m, &in);
	return 0;
}
