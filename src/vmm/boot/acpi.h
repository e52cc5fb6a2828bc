/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACPI tables of the machine: hardware-reduced ACPI, because Debian's kernel is
 * built without MP tables and without virtio_mmio.device=, and because
 * "hardware-reduced" makes Linux leave out PIT, PIC and PM timer. The tables
 * name the local APICs, the IOAPIC, one LNRO0005 device per virtio-mmio window,
 * and the sleep registers by which the guest powers off.
 *
 * Thread: loop thread, before the guest runs. fork: in guest RAM, inherited.
 */
#pragma once

#include "vmm/core/gmem.h"

/* Guest-physical home of the tables: between EBDA and 1 MiB, reserved in e820. */
#define ACPI_BASE 0xe0000ull
#define ACPI_SIZE 0x20000ull

/* I/O ports of the sleep control and status registers (ACPI 6.4, 4.8.3.7). */
#define ACPI_SLEEP_CONTROL_PORT 0xf20
#define ACPI_SLEEP_STATUS_PORT  0xf21
#define ACPI_SLEEP_ENABLE       0x20 /* SLP_EN in the control register */

/* Writes all tables for ncpus processors and ndevs windows; the RSDP is at ACPI_BASE. */
__must_check int acpi_build(const struct gmem *ram, unsigned int ncpus, unsigned int ndevs,
			    struct err *err);
