/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon with a template and two sandboxes, and the other ends of all that it holds.
 */
#define _GNU_SOURCE
#include "daemon_rig.h"

#include "daemon/limits.h"
#include "daemon/vmm_impl.h"
#include "lib/fdpass.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <jansson.h>
#include <sys/mman.h>

#define TURNS 8

/* parent: NULL: the first of a family. */
static int new_vmm(struct rig *g, int fd, const struct rig_vmm *parent)
{
	for (unsigned i = 0; i < RIG_VMMS; i++)
		if (g->vmm[i].fd < 0) {
			unsigned family = parent ? parent->family : i;

			g->vmm[i] = (struct rig_vmm){.fd = fd, .family = family};
			return (int)i;
		}
	close(fd);
	return -1;
}

static void new_agent(struct rig *g, int fd)
{
	for (unsigned i = 0; i < RIG_AGENTS; i++) {
		struct rig_agent *a = &g->agent[i];

		if (a->fd >= 0)
			continue;
		a->fd = fd;
		frame_reader_init(&a->in);
		return;
	}
	close(fd);
}

static void take_messages(struct rig *g, struct rig_vmm *v)
{
	int fds[FDPASS_MAX], child;
	struct ctl_msg m;
	int rc = 0;

	while (v->fd >= 0 && (rc = ctl_recv(v->fd, &m, fds)) == 1) {
		size_t n = ctl_fd_count(m.type), first = 0;

		MUST(m.type < 0x80);
		if (m.type == CTL_CONNECT) {
			new_agent(g, fds[first++]);
		} else if (m.type == CTL_FORK) {
			child = new_vmm(g, fds[first++], v);
			v->fork_id = m.id;
			v->child = child < 0 ? 0 : (uint32_t)child;
		}
		while (n > first)
			close(fds[--n]);
	}
	if (v->fd >= 0)
		MUST(rc == -EAGAIN || rc == 0 || rc == -ECONNRESET);
	if (rc == 0 || rc == -ECONNRESET)
		close_fd(&v->fd);
}

/* What the daemon has sent to an agent: whole frames of the host's. */
static void take_frames(struct rig_agent *a)
{
	struct frame f;
	ssize_t n;
	int rc;

	if (a->fd < 0)
		return;
	do {
		while ((rc = frame_reader_next(&a->in, &f)) == 1)
			MUST(f.type < 0x80);
		MUST(rc == 0);
		n = frame_reader_fill(&a->in, a->fd);
	} while (n > 0);
	if (n == 0 || (n < 0 && n != -EAGAIN)) {
		frame_reader_free(&a->in);
		close_fd(&a->fd);
	}
}

void rig_bytes(struct rig *g, unsigned agent, const void *data, size_t len)
{
	int fd = g->agent[agent % RIG_AGENTS].fd;

	if (fd >= 0)
		(void)io_send_some(fd, data, len);
}

void rig_frame(struct rig *g, unsigned agent, uint8_t type, const void *payload, size_t len)
{
	int fd = g->agent[agent % RIG_AGENTS].fd;
	struct frame_writer w;

	if (fd < 0)
		return;
	frame_writer_init(&w, FRAME_PAYLOAD_MAX + 64);
	if (frame_put(&w, type, payload, len) == 0)
		(void)frame_writer_flush(&w, fd);
	frame_writer_free(&w);
}

void rig_hang_up(struct rig *g, unsigned agent)
{
	struct rig_agent *a = &g->agent[agent % RIG_AGENTS];

	if (a->fd < 0)
		return;
	frame_reader_free(&a->in);
	close_fd(&a->fd);
}

void rig_message(struct rig *g, unsigned vmm, const struct ctl_msg *m)
{
	int fd = g->vmm[vmm % RIG_VMMS].fd, none[FDPASS_MAX];

	if (fd < 0)
		return;
	for (unsigned i = 0; i < FDPASS_MAX; i++)
		none[i] = fd;
	(void)!ctl_send(fd, m, none);
}

void rig_vmm_gone(struct rig *g, unsigned vmm)
{
	close_fd(&g->vmm[vmm % RIG_VMMS].fd);
}

/* --- all of it ---------------------------------------------------------------------------- */

void rig_turn(struct rig *g)
{
	for (int i = 0; i < TURNS; i++) {
		for (unsigned k = 0; k < RIG_VMMS; k++)
			take_messages(g, &g->vmm[k]);
		for (unsigned k = 0; k < RIG_AGENTS; k++)
			take_frames(&g->agent[k]);
		MUST(loop_run_once(&g->d.loop, 0) == 0);
		for (unsigned k = 0; k < RIG_CALLS; k++)
			rig_serve(&g->call[k]);
		rig_check_processes();
	}
}

void rig_wait(struct rig *g, uint64_t ns)
{
	rig_clock_forward(ns);
	rig_turn(g);
}

/* A VMM whose other end the rig has; its process is one of the rig's. */
static void give_vmm(struct rig *g, struct vmm *v)
{
	struct err err = {0};
	int ctl, peer, i;

	vmm_init(v, &g->d.vmms);
	MUST(vmm_make_ends(v, &ctl, &peer, &err) == 0);
	MUST(loop_add(&g->d.loop, &v->ctl, ctl, EPOLLIN) == 0);
	i = new_vmm(g, peer, NULL);
	MUST(i >= 0);
	v->pid = (pid_t)rig_new_process((unsigned)i);
	MUST(vmm_watch(v, -1, &err) == 0);
}

static void on_ready(struct sandbox *sb, void *arg)
{
	(void)sb;
	(void)arg;
}

/* As template.c has it. */
static void on_template_ended(struct vmm *v, const char *reason)
{
	template_failed(list_entry(v, struct template_vm, vmm), "%s", reason);
}

static void on_template_reaped(struct vmm *v)
{
	struct template_vm *vm = list_entry(v, struct template_vm, vmm);

	vm->process = false;
	if (vm->reason[0])
		return;
	list_del(&vm->link);
	loop_defer_free(v->host->loop, vm);
}

static const struct vmm_ops template_ops = {.ended = on_template_ended,
					    .reaped = on_template_reaped};

static void make_template(struct rig *g)
{
	struct template *t = calloc(1, sizeof(*t));

	MUST(t);
	t->d = &g->d;
	snprintf(t->spec.name, sizeof(t->spec.name), "default");
	t->spec.memory_mib = 128;
	t->spec.vcpus = 1;
	t->spec.disk_mib = 64;
	t->spec.image_fd = -1;
	t->root.fd = memfd_create("root", MFD_CLOEXEC);
	list_init(&t->vms);
	for (enum template_kind k = 0; k < TEMPLATE_KINDS; k++)
		list_init(&t->pool[k].ready);
	g->d.templates = (struct templates){t, 1};
	g->tvm = calloc(1, sizeof(*g->tvm));
	MUST(g->tvm);
	g->tvm->t = t;
	g->tvm->size = template_own_size(t);
	g->tvm->state = TEMPLATE_READY;
	list_init(&g->tvm->waiters);
	list_add_tail(&t->vms, &g->tvm->link);
	agent_init(&g->tvm->agent, &g->d.loop, &g->tvm->vmm);
	g->tvm->vmm.ops = &template_ops;
	g->tvm->process = true;
	give_vmm(g, &g->tvm->vmm);
}

static void make_sandbox(struct rig *g, unsigned i)
{
	struct sandbox_params p = sandbox_params_of_template(g->tvm);
	json_t *metadata = json_object();
	struct sandbox *sb;

	p.metadata = metadata;
	if (i > 0)
		p.parent = g->sb[0];
	MUST(registry_reserve(&g->d.registry, 1));
	sb = sandbox_new(&g->d, &p, on_ready, NULL);
	MUST(sb);
	json_decref(metadata);
	sb->from = NULL;
	give_vmm(g, &sb->vmm);
	sb->state = SANDBOX_READY;
	sb->forked = sb->renewed = sb->announced = true;
	/* An id that a request of the input can name. */
	snprintf(sb->id, sizeof(sb->id), "sbx_%032u", i);
	snprintf(g->id[i], sizeof(g->id[i]), "%s", sb->id);
	g->sb[i] = sb;
}

static void make_operator(struct egress_operator *o)
{
	json_t *ceiling = json_pack("[s, s, s]", "*.example.com", "a.test", "pypi");

	o->usable = true;
	o->allow = json_array();
	o->ceiling = json_null();
	o->groups = json_pack("{s:[s, s]}", "pypi", "pypi.org", "files.pythonhosted.org");
	MUST(egress_rules_parse(&o->ceiling_rules, ceiling, o->groups, NULL) == 0);
	json_decref(ceiling);
}

void rig_init(struct rig *g)
{
	struct daemon *d = &g->d;

	log_init(LOG_TEXT, (enum log_level)(LOG_ERROR + 1));
	memset(g, 0, sizeof(*g));
	rig_surroundings_reset(g);
	g->descriptors = rig_descriptors();
	for (unsigned i = 0; i < RIG_VMMS; i++)
		g->vmm[i].fd = -1;
	for (unsigned i = 0; i < RIG_AGENTS; i++)
		g->agent[i].fd = -1;
	MUST(loop_init(&d->loop) == 0);
	d->config = (struct config){.max_fork = 4,
				    .max_sandboxes = 8,
				    .freeze_timeout_s = 20,
				    .create_timeout_s = 120,
				    .template_timeout_s = 600,
				    .ping_after_s = 30,
				    .pong_within_s = 60,
				    .exec_slack_s = 5};
	d->image = (struct image){.kernel_fd = -1, .initramfs_fd = -1};
	d->store.lock_fd = d->store.reserve.fd = -1;
	d->held = (struct held){.max = 16u << 20};
	owners_share_grants(&d->owners, 0, &d->held);
	d->diffs = (struct held){.max = LIMIT_DIFFS};
	d->tests = (struct held){.max = LIMIT_POLICY_TESTS};
	d->execs = (struct held){.max = 64};
	registry_init(&d->registry, 8);
	turns_init(&d->renewals, &d->loop, 0);
	pool_init(&d->pool, d);
	vmm_host_init(&d->vmms, &d->loop, "vmm", "/dev/null", "/tmp");
	d->vmms.others = &d->egress;
	d->vmms.others_own = egress_host_owns;
	d->vmms.others_reap = egress_host_reap;
	d->egress.loop = &d->loop;
	d->egress.program = "egress";
	d->egress.audit.fd = -1;
	list_init(&d->egress.proxies);
	audit_shares_init(&d->egress.shares, &d->egress.audit, &d->loop, true);
	make_operator(&d->egress.op);
	d->http.d = d;
	d->http.loop = &d->loop;
	list_init(&d->http.requests);
	list_init(&d->http.hups);
	make_template(g);
	for (unsigned i = 0; i < RIG_SANDBOXES; i++) {
		make_sandbox(g, i);
		/* Else every request of an input is one for a sandbox that is not there. */
		MUST(registry_find(&d->registry, g->id[i], RIG_OWNER) == g->sb[i]);
	}
}

/* Whether some request has no answer yet. A file's end, and a list's, an agent may keep back. */
static bool is_waited_for(const struct rig *g, bool files)
{
	for (unsigned i = 0; i < RIG_CALLS; i++) {
		const struct rig_call *c = &g->call[i];
		const char *tail = c->there && !c->status ? strrchr(c->r.uri, '/') : NULL;

		if (tail && (files || (strcmp(tail, "/files") != 0 && strcmp(tail, "/list") != 0)))
			return true;
	}
	return false;
}

void rig_free(struct rig *g)
{
	struct daemon *d = &g->d;

	for (int i = 0; i < 4 && is_waited_for(g, false); i++)
		rig_wait(g, 700 * SECOND_NS);
	MUST(!is_waited_for(g, false));
	pool_stop(&d->pool);
	while (!list_empty(&d->registry.live))
		sandbox_end(list_entry(d->registry.live.next, struct sandbox, link), false, "over");
	templates_stop(&d->templates);
	rig_turn(g);
	MUST(!is_waited_for(g, true));
	for (unsigned i = 0; i < RIG_CALLS; i++)
		rig_leave(&g->call[i]);
	for (unsigned i = 0; i < RIG_VMMS; i++)
		rig_vmm_gone(g, i);
	for (unsigned i = 0; i < RIG_AGENTS; i++)
		rig_hang_up(g, i);
	for (int i = 0; i < 8; i++) {
		rig_clock_forward(700 * SECOND_NS);
		MUST(loop_run_once(&d->loop, 0) == 0);
	}
	MUST(registry_empty(&d->registry) && list_empty(&d->vmms.vmms));
	MUST(d->registry.places == 0 && list_empty(&d->http.requests));
	MUST(d->diffs.n == 0 && d->tests.n == 0 && list_empty(&d->egress.shares.lines));
	MUST(d->held.n == 0 && d->owners.grants[CONFIG_KEYS_MAX].n == 0);
	vmm_host_stop(&d->vmms);
	templates_free(&d->templates);
	audit_shares_free(&d->egress.shares);
	operator_free(&d->egress.op);
	loop_free(&d->loop);
	MUST(rig_descriptors() == g->descriptors);
}
