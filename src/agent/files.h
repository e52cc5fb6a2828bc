/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PUT, GET and FILE: files to and from the guest, and what else is done with
 * them, with the user's rights.
 *
 * PUT writes a temporary file beside the target and renames it at the end:
 * readers see the old content or the new, and a failure leaves nothing behind,
 * the parent directories made for it included. Any size, with one buffer of
 * 64 KiB in the agent.
 * GET delivers regular files only, or a part of one, /proc and /sys included;
 * it never blocks on pipes or devices, which it does not open at all.
 * FILE looks at names, not into files.
 *
 * Thread: the loop's. fork: descriptors are close-on-exec.
 */
#pragma once

#include "agent/request.h"

struct stream;

/* Both take what *r owns. */
void put_begin(struct stream *s, struct request_file *r);
void get_begin(struct stream *s, struct request_file *r);
/* *q stays the caller's. */
void fileop_begin(struct stream *s, const struct request_fileop *q);

/* Parts of FILE; path is absolute. */
void listing_begin(struct stream *s, const char *path, unsigned depth);
void removal_begin(struct stream *s, const char *path, bool recursive);
/* ERROR "cannot <do that to> path". rc: a negative errno. */
void fileop_fail(struct stream *s, enum request_fileop_op op, const char *path, int rc);
