/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One request of a virtio-blk driver: checked, carried out, answered. Private to
 * the device; see blk.h for threads and fork.
 */
#pragma once

#include "vmm/virtio/blk.h"

/*
 * Carries out the request in b->chain, writes its status byte and gives the chain
 * back. Returns what it takes out of the budget, or -EPROTO: the chain has no
 * room for header and status.
 */
__must_check int64_t blk_request(struct blk *b);
