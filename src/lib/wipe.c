/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Overwrites all that the allocator gave, not only what was asked for.
 */
#define _GNU_SOURCE
#include "lib/wipe.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

void wipe_free(void *p)
{
	if (p)
		explicit_bzero(p, malloc_usable_size(p));
	free(p);
}
