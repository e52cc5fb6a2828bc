/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User-space IOAPIC (82093AA): 24 pins, edge-triggered only. A pin's entry in
 * the redirection table becomes one message-signalled interrupt. The whole
 * state is plain memory.
 *
 * Thread: any, with the device lock held. Delivery is synchronous in the
 * raising thread, so that no interrupt is in flight when nobody holds the lock.
 * fork: inherited as it is; the child only needs its own `deliver` target.
 */
#pragma once

#include <stdint.h>

#define IOAPIC_PINS     24u
#define IOAPIC_MMIO_LEN 0x1000u

/* Sends address/data to the local APICs. */
typedef void ioapic_deliver_fn(void *arg, uint32_t address, uint32_t data);

/* What a saved IOAPIC consists of. */
struct ioapic_state {
	uint32_t select;
	uint32_t id;
	uint32_t pending; /* bit per pin: edge seen while masked */
	uint64_t redir[IOAPIC_PINS];
};

struct ioapic {
	struct ioapic_state s;
	ioapic_deliver_fn *deliver;
	void *arg;
};

void ioapic_init(struct ioapic *io, ioapic_deliver_fn *deliver, void *arg);

/* Register access at an offset into the window; unknown ones read 0 and ignore writes. */
uint32_t ioapic_read(const struct ioapic *io, uint64_t off);
void ioapic_write(struct ioapic *io, uint64_t off, uint32_t val);

/* An edge on a pin: delivered now, or kept until the guest unmasks the pin. */
void ioapic_raise(struct ioapic *io, unsigned int pin);

void ioapic_save(const struct ioapic *io, struct ioapic_state *out);
/* Takes a saved state as hostile: reserved bits are cleared. */
void ioapic_load(struct ioapic *io, const struct ioapic_state *in);
