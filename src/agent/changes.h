/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CHANGES and HASHES: how this machine's files differ from the image, so that
 * the host can compare two machines. Both only read, work while all is frozen,
 * and take turns with everybody else.
 *
 * Thread: the loop's. fork: jobs on streams, dropped in a copy.
 */
#pragma once

#include "agent/request.h"

struct stream;

/* r stays the caller's. */
void changes_begin(struct stream *s, const struct request_changes *r);
/* The paths follow as body. */
void hashes_begin(struct stream *s);
