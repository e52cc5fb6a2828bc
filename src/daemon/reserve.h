/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room for the state database and egress.jsonl on a disk that sandboxes have filled:
 * a file of real blocks in the state directory that is given up piece by piece when
 * one of them finds no room, and filled again when there is plenty. In pieces, because
 * what is given up may be taken by a sandbox before they have it.
 *
 * Thread: the loop's. fork: close-on-exec.
 */
#pragma once

#include "lib/loop.h"

#include <stdbool.h>
#include <stdint.h>

struct reserve {
	struct loop *loop;
	int fd; /* -1: there is none */
	uint64_t have;
	struct loop_timer timer;
};

/* Opens or makes it, and fills it. Without room it starts empty. */
void reserve_open(struct reserve *r, struct loop *loop, const char *dir);
void reserve_close(struct reserve *r);
/*
 * Gives up a piece, if so many bytes stay; false: it gives nothing. That some stay is for who asks
 * on behalf of sandboxes: they could have all of it otherwise.
 */
bool reserve_give(struct reserve *r, uint64_t stay);
