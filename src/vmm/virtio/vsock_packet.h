/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a vsock packet (virtio 1.2, section 5.10.6), in host form and
 * as its 44 little-endian bytes.
 *
 * Pure functions; any thread; fork: nothing.
 */
#pragma once

#include "vmm/virtio/virtio_spec.h"

#include <stdint.h>

/* Largest payload of one packet; what Linux sends at most, too. */
#define VSOCK_PACKET_MAX (64u << 10)

struct vsock_hdr {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port;
	uint32_t len; /* payload bytes behind the header */
	uint16_t type, op;
	uint32_t flags;
	uint32_t buf_alloc, fwd_cnt;
};

/* What a receiver does with a packet. */
enum vsock_verdict {
	VSOCK_ACCEPT,
	VSOCK_REFUSE, /* answer with RST: well addressed, but not for us or not sensible */
	VSOCK_DROP,   /* no answer is possible or due */
};

void vsock_hdr_pack(uint8_t out[VSOCK_HDR_BYTES], const struct vsock_hdr *h);
void vsock_hdr_unpack(const uint8_t in[VSOCK_HDR_BYTES], struct vsock_hdr *h);

/*
 * Judges a header that came from the guest with this CID; room = bytes that
 * the descriptors held behind it. Does not know connections.
 */
enum vsock_verdict vsock_hdr_check(const struct vsock_hdr *h, uint64_t guest_cid, uint32_t room);
