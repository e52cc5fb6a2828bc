/* SPDX-License-Identifier: Apache-2.0 */
/*
 * free() for memory that may have held a secret: it is overwritten first. Meant
 * for libraries that can be given their own (json_set_alloc_funcs()).
 * fork: no state.
 */
#pragma once

/* p: of malloc(), or NULL. */
void wipe_free(void *p);
