/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Serial console: as much of a 16550 as the guest kernel's polled output needs.
 * What the guest writes goes into the console ring (proto/guest.h), which is
 * bounded and shared with the daemon; input does not exist.
 *
 * Thread: any, with the device lock held.
 * fork: registers are inherited; the child is given a ring of its own.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"
#include "proto/guest.h"

#define CONSOLE_PORT_BASE 0x3f8
#define CONSOLE_PORT_LEN  8

struct console_state {
	uint8_t ier, lcr, mcr, scratch, dll, dlm;
};

struct console {
	struct console_state s;
	struct console_ring *ring;
};

/* Maps the ring; fd stays the caller's. Fails when it is not CONSOLE_RING_SIZE bytes long. */
__must_check int console_init(struct console *c, int fd, struct err *err);
void console_free(struct console *c);

/* In a forked child: another ring instead of the parent's, registers as they are. */
__must_check int console_replace(struct console *c, int fd, struct err *err);

/* reg is the port minus CONSOLE_PORT_BASE, 0..7. */
uint8_t console_read(const struct console *c, unsigned int reg);
void console_write(struct console *c, unsigned int reg, uint8_t val);

void console_save(const struct console *c, struct console_state *out);
void console_load(struct console *c, const struct console_state *in);
