/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VMM gives up before it listens to anyone: descriptors it was not
 * handed, new privileges, its view of the network and of other processes'
 * objects, and every system call it has no use for. It opens no file and makes
 * no socket, ever: socket(2), connect(2) and open(2) kill it.
 *
 * Thread: called once by main() before any thread exists.
 * fork: all of it is inherited.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

/* Empty namespaces where the host allows them (see `podflare doctor`), then the filter. */
__must_check int jail_enter(struct err *err);
