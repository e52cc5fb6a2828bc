/* SPDX-License-Identifier: Apache-2.0 */
/*
 * I/O port access from user space, allowed for the one port and for the one
 * instruction only.
 */
#include "agent/status_port.h"
#include "proto/guest.h"

#include <errno.h>
#include <sys/io.h>

int status_port_write(uint32_t value)
{
	if (ioperm(GUEST_STATUS_PORT, 4, 1) < 0)
		return -errno;
	outl(value, GUEST_STATUS_PORT);
	ioperm(GUEST_STATUS_PORT, 4, 0);
	return 0;
}
