/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one sandbox may write into the file of the audit, which is of one size for all: a guest that
 * asks for what it is denied in a loop must not push out everybody's records. SHARE_BURST records
 * at once, and SHARE_NS for each more. What comes faster is held: records that are alike (type,
 * verdict, host, port, method, rule, reason, why) become one, which is written after SHARE_HOLD_NS
 * or with the end of the sandbox, and has two members more: "suppressed", how many it stands for,
 * and "until", the time of the last. Of an end its bytes are those of all.
 *
 * SHARE_HELD kinds are told apart; the rest are one record for each type and verdict, without host,
 * port, method, address and rule. What is counted (audit.h) is counted of each.
 *
 * It is the sandbox's and of each of its proxies, and goes with the last of them.
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include "daemon/egress/audit.h"
#include "lib/loop.h"

#define SHARE_BURST   2000u
#define SHARE_NS      SECOND_NS
#define SHARE_HOLD_NS (60 * SECOND_NS)
#define SHARE_HELD    16u

struct audit_share;

/* One reference. NULL: no memory. */
struct audit_share *audit_share_new(struct audit *a, struct loop *loop);
struct audit_share *audit_share_ref(struct audit_share *s);
/* NULL is fine. The last one writes what is held. */
void audit_share_unref(struct audit_share *s);

/* As audit_record(), for what a sandbox with this share has done. */
void audit_share_record(struct audit_share *s, const struct record *r, const char *text,
			size_t len);
