/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files behind config.h share.
 * Thread: before the loop runs. fork: no state.
 */
#pragma once

#include "daemon/config.h"

/* A decimal number from min to max; err names what it is the value of. */
int config_parse_number(const char *what, const char *text, uint32_t min, uint32_t max,
			uint32_t *out, struct err *err);

int config_load_env(struct config *c, struct err *err);
