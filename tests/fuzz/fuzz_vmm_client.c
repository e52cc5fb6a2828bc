/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's end of control sockets. The input is a script of what VMMs say, in order and out of
 * it, of packets that are no messages, of processes that end; and of what clients want meanwhile,
 * so that there is something to be answered: sandboxes made, forked, merged and deleted, commands.
 * A VMM must not be able to name a process that is not its child, to be told of a child twice, or
 * to leave anything behind: the rig looks who has which process.
 */
#define _GNU_SOURCE
#include "daemon_rig.h"

#include "daemon/limits.h"
#include "proto/guest.h"

#include <sys/socket.h>

static const struct {
	const char *method, *path, *body;
} requests[] = {
	{"POST", "/v1/sandboxes", "{}"},
	{"POST", "/v1/sandboxes", "{\"memory_mib\":256,\"vcpus\":1,\"disk_mib\":64}"},
	{"POST", "/v1/sandboxes", "{\"egress\":{\"allow\":[\"a.test\"]}}"},
	{"POST", "/v1/sandboxes/sbx_00000000000000000000000000000000/fork", "{\"n\":3}"},
	{"DELETE", "/v1/sandboxes/sbx_00000000000000000000000000000000", ""},
	{"DELETE", "/v1/sandboxes/sbx_00000000000000000000000000000001", ""},
	{"POST",
	 "/v1/sandboxes/sbx_00000000000000000000000000000000/merge_into/"
	 "sbx_00000000000000000000000000000001",
	 ""},
	{"POST", "/v1/sandboxes/sbx_00000000000000000000000000000000/exec", "{\"code\":\"1\"}"},
	{"PUT", "/v1/sandboxes/sbx_00000000000000000000000000000000/egress",
	 "{\"allow\":[\"a.test\"]}"},
	{"GET", "/v1/tree", ""},
	{"GET", "/v1/metrics", ""},
	{"GET", "/v1/sandboxes", ""},
	{"GET", "/v1/templates", ""},
	{"GET", "/v1/sandboxes/sbx_00000000000000000000000000000000/console", ""},
};

static void want(struct rig *g, uint8_t which)
{
	unsigned i = which % (unsigned)ARRAY_SIZE(requests);

	rig_request(g, requests[i].method, requests[i].path, NULL, requests[i].body,
		    strlen(requests[i].body));
}

static void message(struct rig *g, struct input *in)
{
	static const uint32_t types[] = {CTL_BOOTED, CTL_STATUS,   CTL_CONNECTED, CTL_REFUSED,
					 CTL_STATS,  CTL_EXITED,   CTL_PAUSED,    CTL_FORKED,
					 CTL_DISK,   CTL_RECORDED, CTL_LEARNED,   CTL_GUEST_CONNECT,
					 CTL_HERE};
	uint8_t where = input_u8(in), type = input_u8(in);
	struct ctl_msg m = {.type = type & 0x80 ? type : types[type % ARRAY_SIZE(types)],
			    .id = input_u8(in) % 32,
			    .code = (uint32_t)input_int(in, where & 0x80 ? 4 : 1),
			    .port = where & 0x40 ? input_u8(in) : GUEST_EGRESS_PORT};

	for (size_t i = 0; i < 3; i++)
		m.value[i] = input_int(in, where & 0x80 ? 8 : 2);
	input_bytes(in, m.text, input_u8(in) % 64);
	rig_message(g, where % 8, &m);
}

/*
 * The answer to a fork, as an honest VMM would give it, or nearly; and the child's own word, before
 * it or after it or not yet. It may have ended by then. Or the child is made, and not told of: so
 * another VMM may, of the last one that was made by whomever. Or it is somebody's.
 */
static void forked(struct rig *g, struct input *in)
{
	uint8_t how = input_u8(in), order = how / 4 % 4;
	struct rig_vmm *v = &g->vmm[how % 4];
	struct ctl_msg m = {.type = CTL_FORKED, .id = v->fork_id};
	uint32_t pid = how & 0x80 ? 100001u : rig_new_process(v->family);

	if ((how & 0xc0) == 0x40)
		return;
	if (how & 0x40)
		pid = rig_youngest_process();
	m.value[CTL_FORKED_PID] = pid;
	if (order == 1)
		rig_here(g, v->child, pid);
	if (how & 0x20)
		rig_turn(g);
	if (how & 0x10)
		rig_process_ends(pid);
	rig_message(g, how % 4, &m);
	if (order == 2)
		rig_here(g, v->child, pid);
}

/* Agents say yes: what was forked gets ready. */
static void agents_agree(struct rig *g)
{
	for (unsigned i = 0; i < RIG_AGENTS; i++)
		rig_frame(g, i, FRAME_OK, "{}", 2);
}

static void bytes(struct rig *g, struct input *in)
{
	uint8_t raw[CTL_WIRE_SIZE + 8] = {0}, where = input_u8(in);
	size_t len = input_int(in, 2) % (sizeof(raw) + 1), some = input_u8(in);

	memcpy(raw, "PFC1", 4);
	input_bytes(in, raw + (where & 0x80 ? 4 : 0), some % 64);
	if (g->vmm[where % 8].fd >= 0)
		(void)!send(g->vmm[where % 8].fd, raw, len, MSG_NOSIGNAL);
}

static void step(struct rig *g, struct input *in)
{
	uint8_t op = input_u8(in);

	switch (op % 8) {
	case 0:
	case 1:
		message(g, in);
		break;
	case 2:
		forked(g, in);
		break;
	case 3:
		want(g, op / 8);
		break;
	case 4:
		agents_agree(g);
		break;
	case 5:
		if (op & 0x80)
			bytes(g, in);
		else
			rig_vmm_gone(g, op / 8 % 8);
		break;
	case 6:
		rig_process_ends(100000u + op / 8 % 16u);
		if (op & 0x80)
			vmm_host_reap(&g->d.vmms);
		break;
	case 7:
		if (op & 0x80)
			rig_leave(&g->call[op / 8 % 16 % RIG_CALLS]);
		else
			rig_wait(g, (uint64_t)input_u8(in) * SECOND_NS / 4);
		break;
	}
	rig_turn(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct rig g;
	struct input in = {data, size};

	rig_init(&g);
	g.d.config.pool_size = input_u8(&in) % 3;
	while (in.left)
		step(&g, &in);
	rig_free(&g);
	return 0;
}
