/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What may be written into the file of the audit, which is of one size for all: a guest that
 * asks for what it is denied in a loop must not push out everybody's records, nor may a key that
 * makes one such guest after the other. A line of sandboxes (one, and all copies of it and of them)
 * has SHARE_BURST records at once, and SHARE_NS for each more. Where there are several owners, each
 * has SHARE_OWNER_BURST and SHARE_OWNER_NS in all; one that is alone has no limit of that kind.
 *
 * What comes faster is held, for each sandbox: records that are alike (type,
 * verdict, host, port, method, rule, reason, why) become one, which is written after SHARE_HOLD_NS
 * or with the end of the sandbox, and has two members more: "suppressed", how many it stands for,
 * and "until", the time of the last. Of an end its bytes are those of all.
 *
 * SHARE_HELD kinds are told apart; the rest are one record for each type and verdict, without host,
 * port, method, address and rule. What is counted (audit.h) is counted of each.
 *
 * What was held is not written either when its owner has too much: then it goes into one record for
 * each type and verdict that is the owner's, without a sandbox, and comes SHARE_HOLD_NS later or
 * with the end of the daemon.
 *
 * It is the sandbox's and of each of its proxies, and goes with the last of them.
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include "daemon/egress/audit.h"
#include "lib/list.h"
#include "lib/loop.h"

#define SHARE_BURST   2000u
#define SHARE_NS      SECOND_NS
#define SHARE_HOLD_NS (60 * SECOND_NS)
#define SHARE_HELD    16u

#define SHARE_OWNER_BURST 20000u
#define SHARE_OWNER_NS    (SECOND_NS / 10)

struct audit_share;

/* All that there are. */
struct audit_shares {
	struct audit *audit;
	struct loop *loop;
	struct list lines, owners;
	bool several; /* owners */
};

void audit_shares_init(struct audit_shares *all, struct audit *a, struct loop *loop, bool several);
/* Writes what is held of owners. There must be no share any more that is still used. */
void audit_shares_free(struct audit_shares *all);

/* Of a sandbox of this owner and line. One reference. NULL: no memory. */
struct audit_share *audit_share_new(struct audit_shares *all, const char *owner, const char *line);
struct audit_share *audit_share_ref(struct audit_share *s);
/* NULL is fine. The last one writes what is held. */
void audit_share_unref(struct audit_share *s);

/* As audit_record(), for what a sandbox with this share has done. */
void audit_share_record(struct audit_share *s, const struct record *r, const char *text,
			size_t len);
