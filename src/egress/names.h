/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of hosts, as egress/rules.h has them, for the parser of rules: it wants the reason alone,
 * and quotes the entry itself.
 *
 * Thread: any. fork: no state.
 */
#pragma once

#include <stddef.h>

/*
 * egress_host_normal() with the reason as a phrase without subject ("ends in a dot"), a constant.
 * out: EGRESS_HOST_MAX + 1 bytes. 0, -EINVAL, -ENOMEM.
 */
int egress_name_normal(const char *name, size_t len, char *out, const char **fault);

#define EGRESS_QUOTE_MAX 120u

/*
 * What somebody wrote, in quotation marks, for a sentence: ASCII alone, everything else as \u{..}
 * or \x{..}, and cut with "..." where it is long. So that nothing in it can hide, turn the text
 * around or end the line.
 */
void egress_quote(char out[EGRESS_QUOTE_MAX], const char *s, size_t len);
