/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Public addresses of this machine, for the emulated host. In there the proxy asks a
 * kernel that has other ones, and what it connects to is connected to out here: a name
 * that leads to this machine's own address would reach what listens on it, from within
 * its firewall. So `podflare serve` tells them as they are at its start.
 *
 * Addresses that are not public are refused in any case, and left out; but for QEMU's own network,
 * which a wide range of the operator's would open otherwise, with all that listens on loopback
 * here. No state. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

/*
 * JSON: a list of prefixes in CIDR form, for the daemon's --own-ranges; the caller's to free. 0, or
 * -errno with a sentence: without the list nothing may go out.
 */
__must_check int ownranges_text(char **out, struct err *err);
