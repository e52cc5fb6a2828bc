/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sandbox ids: "sbx_" and 32 lower-case hex digits from the kernel's random
 * source. Any thread. fork: no state.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define SANDBOX_ID_LEN 36
#define IDS_NAME_MAX   64u

/* 2 * bytes hex digits and a NUL. bytes <= 32. */
void ids_random_hex(char *out, size_t bytes);

void ids_make(char out[SANDBOX_ID_LEN + 1]);
bool ids_valid(const char *id);
/* Whether it can be an id of an exec, a context or a kept command. */
bool ids_name_valid(const char *id);
