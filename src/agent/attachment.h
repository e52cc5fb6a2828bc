/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream that reads the logs of a kept command from some offsets on, follows them, and gets its
 * EXIT; and perhaps writes its input. The first frame, and one behind each gap, is an EVENT with
 * the offsets of what comes next.
 *
 * Thread: the loop's. fork: streams end in a copy, and attachments with them.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

struct kept;
struct stream;

/* Attaches the idle stream s; offset -1 = only what is new. Input: its STDIN is that of the
   command. Fails before anything is sent. */
__must_check int attachment_begin(struct stream *s, struct kept *k, const int64_t offset[2],
				  bool input, struct err *err);
/* Something has come to the logs, or it has ended. */
void attachments_pump(struct kept *k);
