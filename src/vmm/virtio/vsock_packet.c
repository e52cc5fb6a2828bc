/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing, unpacking and the stateless checks of vsock packet headers.
 * Pure functions; any thread; fork: nothing.
 */
#include "vmm/virtio/vsock_packet.h"

#include "vmm/virtio/bytes.h"

void vsock_hdr_pack(uint8_t out[VSOCK_HDR_BYTES], const struct vsock_hdr *h)
{
	struct bytes_out o = {.p = out, .left = VSOCK_HDR_BYTES};

	bytes_put(&o, h->src_cid, 8);
	bytes_put(&o, h->dst_cid, 8);
	bytes_put(&o, h->src_port, 4);
	bytes_put(&o, h->dst_port, 4);
	bytes_put(&o, h->len, 4);
	bytes_put(&o, h->type, 2);
	bytes_put(&o, h->op, 2);
	bytes_put(&o, h->flags, 4);
	bytes_put(&o, h->buf_alloc, 4);
	bytes_put(&o, h->fwd_cnt, 4);
}

void vsock_hdr_unpack(const uint8_t in[VSOCK_HDR_BYTES], struct vsock_hdr *h)
{
	struct bytes_in i = {.p = in, .left = VSOCK_HDR_BYTES};

	h->src_cid = bytes_get(&i, 8);
	h->dst_cid = bytes_get(&i, 8);
	h->src_port = bytes_get32(&i);
	h->dst_port = bytes_get32(&i);
	h->len = bytes_get32(&i);
	h->type = bytes_get16(&i);
	h->op = bytes_get16(&i);
	h->flags = bytes_get32(&i);
	h->buf_alloc = bytes_get32(&i);
	h->fwd_cnt = bytes_get32(&i);
}

enum vsock_verdict vsock_hdr_check(const struct vsock_hdr *h, uint64_t guest_cid, uint32_t room)
{
	if (h->src_cid != guest_cid)
		return VSOCK_DROP;
	/* An RST is never answered with an RST, or two ends could do so for ever (5.10.6.4). */
	if (h->dst_cid != VSOCK_CID_HOST || h->type != VSOCK_TYPE_STREAM || h->len > room ||
	    h->len > VSOCK_PACKET_MAX || h->op < VSOCK_OP_REQUEST ||
	    h->op > VSOCK_OP_CREDIT_REQUEST || (h->op != VSOCK_OP_RW && h->len))
		return h->op == VSOCK_OP_RST ? VSOCK_DROP : VSOCK_REFUSE;
	return VSOCK_ACCEPT;
}
