/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The IOAPIC, for every sequence of register accesses at any offset with any
 * value, of edges on any of its pins, and from any saved state.
 */
#include "shim.h"

#include <stddef.h>

#include "vmm/irq/ioapic.c"

static void deliver(void *arg, uint32_t address, uint32_t data)
{
	(void)arg;
	(void)address;
	(void)data;
}

int main(void)
{
	struct ioapic_state any, out;
	struct ioapic io;

	ioapic_init(&io, deliver, NULL);
	Frama_C_make_unknown((char *)&any, sizeof(any));
	if (any_bool())
		ioapic_load(&io, &any);
	while (any_bool()) {
		ioapic_write(&io, any64(), any32());
		(void)ioapic_read(&io, any64());
#ifdef BROKEN
		ioapic_raise(&io, any32());
		io.s.redir[any32() % (IOAPIC_PINS + 1)] = 0;
#else
		ioapic_raise(&io, any32());
#endif
		ioapic_save(&io, &out);
	}
	return 0;
}
