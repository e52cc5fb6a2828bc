/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a vsock packet, for all of its bytes: unpacking and packing
 * stay within them, and what is accepted has a length that its descriptors and
 * this device have room for.
 */
#include "shim.h"

#include "vmm/virtio/bytes.h"
#include "vmm/virtio/vsock_packet.c"

#ifdef BROKEN
#define HELD (VSOCK_HDR_BYTES - 1)
#else
#define HELD VSOCK_HDR_BYTES
#endif

int main(void)
{
	uint8_t bytes[HELD], again[VSOCK_HDR_BYTES];
	uint32_t room = any32();
	struct vsock_hdr h;

	Frama_C_make_unknown((char *)bytes, sizeof(bytes));
	vsock_hdr_unpack(bytes, &h);
	if (vsock_hdr_check(&h, 3, room) == VSOCK_ACCEPT) {
		//@ assert h.len <= VSOCK_PACKET_MAX;
		//@ assert h.src_cid == 3 && h.dst_cid == VSOCK_CID_HOST;
		//@ assert h.op == VSOCK_OP_RW || h.len == 0;
		vsock_hdr_pack(again, &h);
	}
	return 0;
}
