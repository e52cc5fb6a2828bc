/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel modules of the initramfs. Thread: boot only.
 */
#pragma once

/*
 * Loads the modules that dir/order names, one a line, in that order. One that
 * cannot be loaded is logged and skipped: what is missed because of it is
 * named by the boot step that needs it (a crc32c driver for another processor
 * may well be refused). Returns the number loaded, or -errno without a list.
 */
int modules_load(const char *dir);
