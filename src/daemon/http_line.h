/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The line of requests that are all there and not begun yet. The library hands over, in one run of
 * it, all that became ready at the same moment, and what an endpoint does at first may take tens of
 * milliseconds (an allowlist of 1 MiB): who sends hundreds of such at once would have the loop to
 * himself for seconds. So a turn of the loop begins as many of them as LIMIT_HTTP_TURN_NS have room
 * for, one at least, and the others wait: in order of arrival behind those of the same key, and the
 * keys take turns. What needs no key, and what has been looked at since its head was there (an
 * upload), does not wait.
 *
 * Nothing waits where nothing is in the way: then the first call is the only one.
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include "daemon/config.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <stdint.h>

struct http;
struct request;

struct http_line {
	struct list
		waiting[CONFIG_KEYS_MAX]; /* struct request, of each key; without keys: the first */
	unsigned int n, next;             /* in all; whose turn it is */
	uint64_t until;                   /* what is begun now; 0: nothing has been in this turn */
	struct loop_timer timer;
};

void http_line_init(struct http *h);
/* The library is about to be run: another turn. */
void http_line_turn(struct http *h);
/* All of it is there: now, or when it is its turn, its endpoint takes over, and its body goes. */
void http_line_enter(struct request *r);
/* It is over. Harmless when it does not wait. */
void http_line_leave(struct request *r);
void http_line_stop(struct http *h);
