/* SPDX-License-Identifier: Apache-2.0 */
/* The seccomp filter of the jail (jail.h). */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

__must_check int jail_filter(struct err *err);
