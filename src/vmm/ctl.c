/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control loop of a VMM. The process lives as long as its control socket: when
 * the daemon is gone, for whatever reason, so is the VM.
 */
#include "vmm/ctl.h"
#include "lib/fdpass.h"
#include "proto/guest.h"
#include "vmm/fork/fork.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

/* A message that cannot be sent means that nobody supervises this VM any more: it ends. */
static void ctl_post(struct ctl *c, const struct ctl_msg *m)
{
	if (ctl_send(c->fd, m, NULL) < 0)
		loop_quit(c->loop);
}

static void ctl_post_exit(struct ctl *c, uint32_t code, const char *text)
{
	struct ctl_msg m = {.type = CTL_EXITED, .code = code};

	snprintf(m.text, sizeof(m.text), "%s", text);
	ctl_post(c, &m);
	loop_quit(c->loop);
}

static void ctl_on_status(void *arg, uint32_t code)
{
	ctl_post(arg, &(struct ctl_msg){.type = CTL_STATUS, .code = code});
}

static void ctl_on_connected(void *arg, uint32_t cookie)
{
	ctl_post(arg, &(struct ctl_msg){.type = CTL_CONNECTED, .id = cookie});
}

static void ctl_on_refused(void *arg, uint32_t cookie, int errnum)
{
	ctl_post(arg,
		 &(struct ctl_msg){.type = CTL_REFUSED, .id = cookie, .code = (uint32_t)errnum});
}

/*
 * The one message that a guest can cause as often as it likes. When the socket is full the guest is
 * refused, and the VM goes on.
 */
static int ctl_on_asked(void *arg, uint32_t id)
{
	const struct ctl_msg m = {.type = CTL_GUEST_CONNECT, .id = id, .port = GUEST_EGRESS_PORT};
	struct ctl *c = arg;
	int rc = ctl_send(c->fd, &m, NULL);

	if (rc < 0 && rc != -EAGAIN)
		loop_quit(c->loop);
	return rc;
}

static void ctl_on_disk_failed(void *arg, int errnum, uint64_t failures)
{
	ctl_post(arg, &(struct ctl_msg){
			      .type = CTL_DISK, .code = (uint32_t)errnum, .value = {failures}});
}

static void ctl_on_ended(void *arg, const struct exit_reason *why)
{
	ctl_post_exit(arg, why->code, why->text);
}

static void ctl_boot(struct ctl *c, const struct ctl_msg *m, int *fds)
{
	struct machine_config cfg = {.mem_mib = m->mem_mib,
				     .vcpus = m->vcpus,
				     .disk_mib = m->disk_mib,
				     .cmdline = m->text};
	struct err err = {0};
	int rc;

	if (c->booted) {
		ctl_post_exit(c, CTL_EXIT_BOOT, "asked to boot twice");
		return;
	}
	c->booted = true;
	memcpy(cfg.fds, fds, sizeof(cfg.fds));
	fds[CTL_BOOT_KVM] = fds[CTL_BOOT_DISK_RW] = fds[CTL_BOOT_DISK_RO] = -1;
	rc = machine_boot(&c->machine, &cfg, &err);
	if (rc < 0)
		ctl_post_exit(c, CTL_EXIT_BOOT, err.msg);
	else
		ctl_post(c, &(struct ctl_msg){.type = CTL_BOOTED});
}

static void ctl_connect(struct ctl *c, const struct ctl_msg *m, int *fds)
{
	if (!c->booted)
		ctl_on_refused(c, m->id, ENOTCONN);
	else
		machine_connect(&c->machine, m->port, take_fd(&fds[0]), m->id);
}

static void ctl_stat(struct ctl *c, const struct ctl_msg *m)
{
	struct ctl_msg reply = {.type = CTL_STATS, .id = m->id};

	if (c->booted)
		machine_stats(&c->machine, reply.value);
	ctl_post(c, &reply);
}

static void ctl_pause(struct ctl *c, const struct ctl_msg *m)
{
	struct ctl_msg reply = {.type = CTL_PAUSED, .id = m->id};
	struct err err = {0};

	if (machine_pause(&c->machine, &err) < 0) {
		reply.code = (uint32_t)err.num;
		memcpy(reply.text, err.msg, sizeof(err.msg));
	}
	ctl_post(c, &reply);
}

/*
 * In the child: the loop, the control socket and the machine become its own. Afterwards no
 * descriptor of the message is left in fds: it has been taken over, or the allow-list has closed
 * it, or the process ends.
 */
static void ctl_become_child(struct ctl *c, int *fds)
{
	struct fork_child child = {.ctl_fd = fds[CTL_FORK_CONTROL],
				   .console_fd = fds[CTL_FORK_CONSOLE],
				   .top = {fds[CTL_FORK_CHILD_RW], fds[CTL_FORK_CHILD_RO]},
				   .gate_fd = fds[CTL_FORK_GATE]};
	struct ctl_msg booted = {.type = CTL_BOOTED};
	struct ctl_msg exited = {.type = CTL_EXITED, .code = CTL_EXIT_BOOT};
	struct err err = {0};
	int rc = loop_fork_child(c->loop);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memset(fds, -1, CTL_FORK_FDS * sizeof(fds[0]));
	c->fd = child.ctl_fd;
	c->src.loop = NULL;
	if (rc == 0)
		rc = loop_add(c->loop, &c->src, c->fd, EPOLLIN);
	if (rc < 0) {
		err_set(&err, -rc, "the child's event loop");
		snprintf(exited.text, sizeof(exited.text), "%s", err.msg);
		(void)!ctl_send(c->fd, &exited, NULL); /* without a loop, only the end is left */
		_exit(1);
	}
	ctl_post(c, &(struct ctl_msg){.type = CTL_HERE});
	rc = machine_fork_child(&c->machine, &child, &err);
	if (rc < 0) {
		ctl_post_exit(c, CTL_EXIT_BOOT, err.msg);
		return;
	}
	booted.value[CTL_BOOTED_VM_US] = machine_fork_age_us(&c->machine);
	ctl_post(c, &booted);
}

static void ctl_fork(struct ctl *c, const struct ctl_msg *m, int *fds)
{
	struct ctl_msg reply = {.type = CTL_FORKED, .id = m->id};
	struct fork_times t = {0};
	struct err err = {0};
	struct layer_fds top = {fds[CTL_FORK_PARENT_RW], fds[CTL_FORK_PARENT_RO]};
	enum ctl_fork_kind kind = m->code < CTL_FORK_KINDS ? m->code : CTL_FORK_KINDS;
	pid_t pid = c->booted ? machine_fork(&c->machine, &top, kind, &t, &err)
			      : err_text(&err, ENOTCONN, "there is no machine to fork");

	fds[CTL_FORK_PARENT_RW] = top.rw;
	fds[CTL_FORK_PARENT_RO] = top.ro;
	if (pid == 0) {
		ctl_become_child(c, fds);
		return;
	}
	if (pid < 0) {
		reply.code = (uint32_t)err.num;
		memcpy(reply.text, err.msg, sizeof(err.msg));
	} else {
		reply.value[CTL_FORKED_PID] = (uint64_t)pid;
		reply.value[CTL_FORKED_PARK_US] = t.park_us;
		reply.value[CTL_FORKED_SAVE_US] = t.save_us;
		reply.value[CTL_FORKED_FORK_US] = t.fork_us;
	}
	ctl_post(c, &reply);
}

static void ctl_record(struct ctl *c, const struct ctl_msg *m)
{
	struct ctl_msg reply = {.type = CTL_RECORDED, .id = m->id};
	struct machine *vm = &c->machine;
	struct err err = {0};
	int rc = m->code < CTL_HOTSETS ? hotsets_record(&vm->hot, &vm->ram, &vm->kvm, m->code, &err)
				       : err_text(&err, EINVAL, "there is no such set of pages");

	if (rc < 0) {
		reply.code = (uint32_t)err.num;
		memcpy(reply.text, err.msg, sizeof(err.msg));
	}
	ctl_post(c, &reply);
}

static void ctl_learn(struct ctl *c, const struct ctl_msg *m)
{
	struct ctl_msg reply = {.type = CTL_LEARNED, .id = m->id};
	struct hotsets *hot = &c->machine.hot;
	struct err err = {0};

	if (hotsets_learn(hot, &err) < 0) {
		reply.code = (uint32_t)err.num;
		memcpy(reply.text, err.msg, sizeof(err.msg));
	}
	for (size_t i = 0; i < CTL_HOTSETS; i++)
		reply.value[i] = hot->set[i].pages;
	ctl_post(c, &reply);
}

static void ctl_warm(struct ctl *c, const struct ctl_msg *m)
{
	if (c->booted && m->code < CTL_HOTSETS)
		machine_warm(&c->machine, m->code);
}

/* Without a machine there is no guest, and no question of one. */
static void ctl_egress(struct ctl *c, const struct ctl_msg *m, int *fds)
{
	if (!c->booted)
		return;
	switch (m->type) {
	case CTL_EGRESS:
		machine_set_egress(&c->machine, m->code == 1);
		break;
	case CTL_ACCEPT:
		machine_accept(&c->machine, m->id, take_fd(&fds[0]));
		break;
	default: /* CTL_REJECT */
		machine_reject(&c->machine, m->id);
		break;
	}
}

static void ctl_dispatch(struct ctl *c, const struct ctl_msg *m, int *fds)
{
	switch (m->type) {
	case CTL_BOOT:
		ctl_boot(c, m, fds);
		break;
	case CTL_CONNECT:
		ctl_connect(c, m, fds);
		break;
	case CTL_STAT:
		ctl_stat(c, m);
		break;
	case CTL_PAUSE:
		ctl_pause(c, m);
		break;
	case CTL_FORK:
		ctl_fork(c, m, fds);
		break;
	case CTL_RECORD:
		ctl_record(c, m);
		break;
	case CTL_LEARN:
		ctl_learn(c, m);
		break;
	case CTL_WARM:
		ctl_warm(c, m);
		break;
	case CTL_EGRESS:
	case CTL_ACCEPT:
	case CTL_REJECT:
		ctl_egress(c, m, fds);
		break;
	case CTL_STOP:
		ctl_post_exit(c, CTL_EXIT_STOPPED, "stopped by the daemon");
		break;
	default:
		/* A message of ours sent back to us: the peer is not the daemon. */
		loop_quit(c->loop);
		break;
	}
}

/* A message whose descriptors could not come in because this process has too many. */
static void ctl_refuse(struct ctl *c, const struct ctl_msg *m)
{
	const char *why = "the VMM has too many open descriptors";
	struct ctl_msg reply = {.type = CTL_FORKED, .id = m->id, .code = EMFILE};

	switch (m->type) {
	case CTL_CONNECT:
		ctl_on_refused(c, m->id, EMFILE);
		break;
	case CTL_ACCEPT:
		if (c->booted)
			machine_reject(&c->machine, m->id);
		break;
	case CTL_FORK:
		snprintf(reply.text, sizeof(reply.text), "%s", why);
		ctl_post(c, &reply);
		break;
	default:
		ctl_post_exit(c, CTL_EXIT_BOOT, why);
		break;
	}
}

static void ctl_on_message(struct loop_src *src, uint32_t events)
{
	struct ctl *c = src->arg;
	int fds[FDPASS_MAX];
	struct ctl_msg m;
	int rc;

	(void)events;
	memset(fds, -1, sizeof(fds));
	rc = ctl_recv(c->fd, &m, fds);
	if (rc == -EAGAIN)
		return;
	if (rc == -EMFILE) {
		ctl_refuse(c, &m);
		return;
	}
	if (rc <= 0) {
		loop_quit(c->loop);
		return;
	}
	ctl_dispatch(c, &m, fds);
	for (size_t i = 0; i < ctl_fd_count(m.type); i++)
		close_fd(&fds[i]);
}

void ctl_init(struct ctl *c, struct loop *loop, int fd)
{
	struct machine_events events = {
		.status = ctl_on_status,
		.connected = ctl_on_connected,
		.refused = ctl_on_refused,
		.asked = ctl_on_asked,
		.disk_failed = ctl_on_disk_failed,
		.ended = ctl_on_ended,
		.arg = c,
	};

	*c = (struct ctl){.loop = loop, .fd = fd};
	machine_init(&c->machine, loop, &events);
	c->src = (struct loop_src){.fd = -1, .fn = ctl_on_message, .arg = c};
}

int ctl_run(struct ctl *c)
{
	int rc = loop_add(c->loop, &c->src, c->fd, EPOLLIN);

	return rc < 0 ? rc : loop_run(c->loop);
}
