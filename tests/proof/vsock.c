/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a vsock packet, for all of its bytes in a guest's memory that may
 * change at any moment: unpacking and packing stay within them, and what is
 * accepted has a length that its descriptors and this device have room for, for
 * as long as it is used.
 */
#include "shim.h"

#include "vmm/virtio/bytes.h"
#include "vmm/virtio/vsock_packet.c"

static volatile uint8_t guest[VSOCK_HDR_BYTES];

/* As virtq_read(): each byte is loaded once, and is any. */
static void copy(uint8_t raw[VSOCK_HDR_BYTES])
{
	for (unsigned i = 0; i < VSOCK_HDR_BYTES; i++)
		raw[i] = guest[i];
}

int main(void)
{
	uint8_t raw[VSOCK_HDR_BYTES], again[VSOCK_HDR_BYTES];
	uint32_t room = any32();
	struct vsock_hdr h;

	copy(raw);
	vsock_hdr_unpack(raw, &h);
	if (vsock_hdr_check(&h, 3, room) == VSOCK_ACCEPT) {
		/* BROKEN: what was checked is not what is used. */
#ifdef BROKEN
		copy(raw);
		vsock_hdr_unpack(raw, &h);
#endif
		//@ assert h.len <= VSOCK_PACKET_MAX;
		//@ assert h.src_cid == 3 && h.dst_cid == VSOCK_CID_HOST;
		//@ assert h.op == VSOCK_OP_RW || h.len == 0;
		vsock_hdr_pack(again, &h);
	}
	return 0;
}
