/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What transfer.c and transfer_reply.c share, and nobody else: the head of a destination's answer,
 * line by line as libcurl hands it over, until it is one that can be passed on to the guest.
 */
#pragma once

#include "egress/http/transfer.h"

/*
 * One line of it, with its end; x->head is true behind its last. False: it cannot be passed on: two
 * lengths that differ, an upgrade, too many headers, no status, or no memory.
 */
__must_check bool transfer_reply_line(struct http_transfer *x, const char *line, size_t n);
