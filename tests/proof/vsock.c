/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a vsock packet, for all of its bytes in a guest's memory that may
 * change at any moment: unpacking and packing stay within them, and what is
 * accepted has a length that this device has room for, for as long as it is used; and
 * its descriptors have, where their room is 0, 1, nearly a packet, or one. (Of
 * two values that are both anything Eva does not know which is less:
 * tests/fuzz/fuzz_vsock_packet.c.)
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

/* The length of what was accepted; 0 else. */
static uint32_t accepted(uint32_t room)
{
	uint8_t raw[VSOCK_HDR_BYTES], again[VSOCK_HDR_BYTES];
	struct vsock_hdr h;

	copy(raw);
	vsock_hdr_unpack(raw, &h);
	if (vsock_hdr_check(&h, 3, room) != VSOCK_ACCEPT)
		return 0;
		/* BROKEN: what was checked is not what is used. */
#ifdef BROKEN
	copy(raw);
	vsock_hdr_unpack(raw, &h);
#endif
	//@ assert h.len <= VSOCK_PACKET_MAX;
	//@ assert h.src_cid == 3 && h.dst_cid == VSOCK_CID_HOST;
	//@ assert h.op == VSOCK_OP_RW || h.len == 0;
	vsock_hdr_pack(again, &h);
	return h.len;
}

int main(void)
{
	uint32_t len = accepted(0);

	//@ assert len == 0;
	len = accepted(1);
	//@ assert len <= 1;
	len = accepted(VSOCK_PACKET_MAX - 1);
	//@ assert len < VSOCK_PACKET_MAX;
	len = accepted(VSOCK_PACKET_MAX);
	//@ assert len <= VSOCK_PACKET_MAX;
	accepted(any32());
	return 0;
}
