/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The status port (proto/guest.h): one number to the VMM, before any stream
 * exists. Thread: any. fork: no state; the I/O permission is given back.
 */
#pragma once

#include <stdint.h>

/* Writes the value; 0 or -errno when the port cannot be used. */
int status_port_write(uint32_t value);
