/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control messages: wire form and the check of what comes in. Stateless.
 */
#include "proto/control.h"
#include "lib/fdpass.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

static uint8_t *put32(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		*p++ = (uint8_t)(v >> (8 * i));
	return p;
}

static uint8_t *put64(uint8_t *p, uint64_t v)
{
	return put32(put32(p, (uint32_t)v), (uint32_t)(v >> 32));
}

static uint32_t get32(const uint8_t **p)
{
	uint32_t v = 0;

	for (int i = 0; i < 4; i++)
		v |= (uint32_t)(*p)[i] << (8 * i);
	*p += 4;
	return v;
}

static uint64_t get64(const uint8_t **p)
{
	uint64_t lo = get32(p);

	return lo | (uint64_t)get32(p) << 32;
}

void ctl_pack(uint8_t out[CTL_WIRE_SIZE], const struct ctl_msg *m)
{
	uint8_t *p = put32(out, CTL_MAGIC);

	p = put32(p, m->type);
	p = put32(p, m->id);
	p = put32(p, m->code);
	p = put32(p, m->port);
	p = put32(p, m->mem_mib);
	p = put32(p, m->vcpus);
	p = put32(p, m->disk_mib);
	for (size_t i = 0; i < CTL_STAT_COUNT; i++)
		p = put64(p, m->value[i]);
	memset(p, 0, CTL_TEXT_MAX);
	memcpy(p, m->text, strnlen(m->text, CTL_TEXT_MAX - 1));
}

static int ctl_known(uint32_t type)
{
	switch (type) {
	case CTL_BOOT:
	case CTL_CONNECT:
	case CTL_STAT:
	case CTL_STOP:
	case CTL_PAUSE:
	case CTL_FORK:
	case CTL_RECORD:
	case CTL_LEARN:
	case CTL_WARM:
	case CTL_EGRESS:
	case CTL_ACCEPT:
	case CTL_REJECT:
	case CTL_GUEST_CONNECT:
	case CTL_PAUSED:
	case CTL_FORKED:
	case CTL_BOOTED:
	case CTL_STATUS:
	case CTL_CONNECTED:
	case CTL_REFUSED:
	case CTL_STATS:
	case CTL_EXITED:
	case CTL_DISK:
	case CTL_RECORDED:
	case CTL_LEARNED:
	case CTL_HERE:
		return 1;
	default:
		return 0;
	}
}

int ctl_unpack(const uint8_t in[CTL_WIRE_SIZE], struct ctl_msg *m)
{
	const uint8_t *p = in;

	if (get32(&p) != CTL_MAGIC)
		return -EPROTO;
	m->type = get32(&p);
	m->id = get32(&p);
	m->code = get32(&p);
	m->port = get32(&p);
	m->mem_mib = get32(&p);
	m->vcpus = get32(&p);
	m->disk_mib = get32(&p);
	for (size_t i = 0; i < CTL_STAT_COUNT; i++)
		m->value[i] = get64(&p);
	memcpy(m->text, p, CTL_TEXT_MAX);
	if (!memchr(m->text, '\0', CTL_TEXT_MAX) || !ctl_known(m->type))
		return -EPROTO;
	return 0;
}

size_t ctl_fd_count(uint32_t type)
{
	switch (type) {
	case CTL_BOOT:
		return CTL_BOOT_FDS;
	case CTL_FORK:
		return CTL_FORK_FDS;
	case CTL_CONNECT:
	case CTL_ACCEPT:
		return 1;
	default:
		return 0;
	}
}

int ctl_send(int sock, const struct ctl_msg *m, const int *fds)
{
	uint8_t wire[CTL_WIRE_SIZE];

	ctl_pack(wire, m);
	return fdpass_send(sock, wire, sizeof(wire), fds, ctl_fd_count(m->type));
}

int ctl_recv(int sock, struct ctl_msg *m, int *fds)
{
	uint8_t wire[CTL_WIRE_SIZE] = {0};
	size_t nfds = FDPASS_MAX;
	ssize_t n = fdpass_recv(sock, wire, sizeof(wire), fds, &nfds, MSG_DONTWAIT);
	int rc = 1;

	if (n <= 0) {
		rc = (int)n;
		if (n == -EMSGSIZE || (n == -EMFILE && ctl_unpack(wire, m) < 0))
			rc = -EPROTO;
	} else if (n != CTL_WIRE_SIZE || ctl_unpack(wire, m) < 0 || nfds != ctl_fd_count(m->type)) {
		rc = -EPROTO;
	}
	if (rc <= 0)
		while (nfds)
			close(fds[--nfds]);
	return rc;
}
