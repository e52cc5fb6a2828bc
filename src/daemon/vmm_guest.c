/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that a guest opens. Every one is answered: a rejection that does not
 * fit into the VMM's socket is kept (a VMM has at most LIMIT_GUEST_CONNECTS of them
 * open; one that has more breaks the protocol) and sent when there is room.
 */
#include "daemon/vmm_impl.h"
#include "proto/guest.h"

#include <errno.h>
#include <string.h>

static void wait_for_room(struct vmm *v)
{
	if (v->ctl.fd >= 0)
		loop_mod(&v->ctl, EPOLLIN | EPOLLOUT);
}

/* Whether it needs no more of our care. */
static bool done(struct vmm *v, int rc)
{
	if (rc == -EAGAIN)
		wait_for_room(v);
	return rc != -EAGAIN;
}

static bool send_egress(struct vmm *v)
{
	struct ctl_msg m = {.type = CTL_EGRESS, .code = v->egress};

	v->egress_unsent = v->ctl.fd >= 0 && !done(v, vmm_send(v, &m, NULL));
	return !v->egress_unsent;
}

static bool send_reject(struct vmm *v, uint32_t id)
{
	struct ctl_msg m = {.type = CTL_REJECT, .id = id};

	return v->ctl.fd < 0 || done(v, vmm_send(v, &m, NULL));
}

void vmm_guest_flush(struct vmm *v)
{
	if (v->egress_unsent && !send_egress(v))
		return;
	while (v->nrejects) {
		if (!send_reject(v, v->rejects[v->nrejects - 1]))
			return;
		v->nrejects--;
	}
	if (v->ctl.fd >= 0)
		loop_mod(&v->ctl, EPOLLIN);
}

void vmm_egress(struct vmm *v, bool on)
{
	v->egress = on;
	send_egress(v);
}

int vmm_accept(struct vmm *v, uint32_t id, int fd)
{
	struct ctl_msg m = {.type = CTL_ACCEPT, .id = id};

	return vmm_send(v, &m, &fd);
}

void vmm_reject(struct vmm *v, uint32_t id)
{
	if (v->nrejects == 0 && send_reject(v, id))
		return;
	if (v->nrejects == LIMIT_GUEST_CONNECTS) {
		vmm_breach(v, "asks for connections and takes no answers");
		return;
	}
	v->rejects[v->nrejects++] = id;
	wait_for_room(v);
}

bool vmm_on_guest_connect(struct vmm *v, const struct ctl_msg *m)
{
	if (m->id == 0 || m->port != GUEST_EGRESS_PORT)
		return false;
	if (v->ops->guest_connect && !v->ended)
		v->ops->guest_connect(v, m->id);
	else
		vmm_reject(v, m->id);
	return true;
}
