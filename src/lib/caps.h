/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Capabilities: those of root, and those that a user namespace has brought.
 *
 * Thread: of the caller; before there are others. fork: inherited.
 */
#pragma once

#include "lib/cleanup.h"

#include <stdint.h>

/* Gives all of them up, and what could be had back of them: 0 or -errno. */
__must_check int caps_drop(void);

/* The same, but for those of these that it has: a bit for each number of linux/capability.h. */
__must_check int caps_keep(uint64_t which);

/*
 * Programs that it starts from here on have this one as well, a number of linux/capability.h, if it
 * has it itself, and the user's settings (securebits) allow that. Root's programs have it anyway.
 */
__must_check int caps_pass(unsigned int which);
