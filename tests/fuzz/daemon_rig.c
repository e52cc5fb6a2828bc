/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's surroundings: HTTP, database, processes, clock, VMMs.
 */
#define _GNU_SOURCE
#include "daemon_rig.h"

#include "daemon/api.h"
#include "daemon/child.h"
#include "daemon/intake.h"
#include "daemon/limits.h"
#include "daemon/vmm_impl.h"
#include "lib/fdpass.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define PULL_BYTES 32768u
#define TURNS      8
#define FIRST_PID  100000u
#define PROCESSES  64u

static uint64_t now_ns = SECOND_NS;

/* --- clock and processes ------------------------------------------------------------------ */

static struct {
	bool there, ended;
	int fd; /* of whoever watches it; -1 */
} process[PROCESSES];

uint64_t __wrap_io_now_ns(void);
int __wrap_pidfd_open(pid_t pid, unsigned int flags);
int __wrap_pidfd_send_signal(int fd, int sig, siginfo_t *si, unsigned int flags);
int __wrap_waitid(idtype_t type, id_t id, siginfo_t *si, int options);

uint64_t __wrap_io_now_ns(void)
{
	return now_ns;
}

uint32_t rig_new_process(void)
{
	for (uint32_t i = 0; i < PROCESSES; i++)
		if (!process[i].there) {
			process[i].there = true;
			process[i].ended = false;
			process[i].fd = -1;
			return FIRST_PID + i;
		}
	return 1; /* nobody's */
}

void rig_process_ends(uint32_t pid)
{
	uint64_t one = 1;
	uint32_t i = pid - FIRST_PID;

	if (i >= PROCESSES || !process[i].there || process[i].ended)
		return;
	process[i].ended = true;
	if (process[i].fd >= 0)
		(void)!write(process[i].fd, &one, sizeof(one));
}

int __wrap_pidfd_open(pid_t pid, unsigned int flags)
{
	uint32_t i = (uint32_t)pid - FIRST_PID;

	(void)flags;
	if (i >= PROCESSES || !process[i].there) {
		errno = ESRCH;
		return -1;
	}
	process[i].fd = eventfd(process[i].ended, EFD_CLOEXEC | EFD_NONBLOCK);
	return process[i].fd;
}

static uint32_t by_fd(int fd)
{
	uint32_t i = 0;

	while (i < PROCESSES && !(process[i].there && process[i].fd == fd))
		i++;
	return i;
}

int __wrap_pidfd_send_signal(int fd, int sig, siginfo_t *si, unsigned int flags)
{
	uint32_t i = by_fd(fd);

	(void)si;
	(void)flags;
	MUST(sig == SIGKILL);
	if (i < PROCESSES)
		rig_process_ends(FIRST_PID + i);
	return 0;
}

int __wrap_waitid(idtype_t type, id_t id, siginfo_t *si, int options)
{
	uint32_t i = type == P_PIDFD ? by_fd((int)id) : PROCESSES;

	memset(si, 0, sizeof(*si));
	if (i == PROCESSES) {
		errno = ECHILD;
		return -1;
	}
	if (!process[i].ended)
		return 0;
	si->si_pid = (pid_t)(FIRST_PID + i);
	si->si_code = CLD_KILLED;
	si->si_status = SIGKILL;
	if (!(options & WNOWAIT))
		process[i].there = false;
	return 0;
}

/* Programs cannot be started here. */
int child_spawn(pid_t *pid, const char *program, const char *name, const char *arg, int peer)
{
	(void)pid;
	(void)program;
	(void)name;
	(void)arg;
	(void)peer;
	return -ENOENT;
}

void child_abandon(pid_t pid)
{
	rig_process_ends((uint32_t)pid);
}

/* --- database ----------------------------------------------------------------------------- */

int store_insert(struct store *s, const struct store_row *row)
{
	(void)s;
	MUST(row->id[0] && row->template[0]);
	return 0;
}

void store_end(struct store *s, const char *id, int64_t ended_ms, uint64_t exec_count,
	       const char *reason, bool deleted)
{
	(void)s;
	(void)ended_ms;
	(void)exec_count;
	(void)deleted;
	MUST(id[0] && reason[0]);
}

void store_egress(struct store *s, const char *id, const json_t *allow)
{
	(void)s;
	(void)id;
	MUST(!allow || json_is_array(allow));
}

void store_delete(struct store *s, const char *id)
{
	(void)s;
	(void)id;
}

int store_merge(struct store *s, const struct store_row *row, const char *winner, int64_t now_ms)
{
	(void)s;
	(void)now_ms;
	MUST(row->id[0] && winner[0]);
	return 0;
}

int store_find(struct store *s, const char *id, struct store_row *row)
{
	(void)s;
	(void)id;
	(void)row;
	return 0;
}

void store_row_free(struct store_row *row)
{
	(void)row;
}

/* --- HTTP --------------------------------------------------------------------------------- */

static struct rig_call *call_of(struct request *r)
{
	return (struct rig_call *)r;
}

/* An answer there is from here on. The daemon only looks whether there is one. */
static bool answer(struct request *r, unsigned status)
{
	static char reply;
	struct rig_call *c = call_of(r);

	MUST(status >= 100 && status < 600 && !c->ended);
	if (c->status)
		return false; /* the first one stands */
	c->status = status;
	r->status = status;
	r->reply = (struct MHD_Response *)(void *)&reply;
	return true;
}

static void check_json(unsigned status, const char *text, size_t len)
{
	json_t *o = json_loadb(text, len, 0, NULL);

	MUST(json_is_object(o) || json_is_array(o));
	if (status >= 400) {
		const char *code = json_string_value(json_object_get(o, "code"));

		MUST(json_string_length(json_object_get(o, "error")) > 0 && code && code[0]);
		MUST(strcmp(code, "internal") != 0);
	}
	json_decref(o);
}

static void check_headers(const char *const *h)
{
	for (; h && *h; h += 2)
		MUST(h[1] && !strpbrk(h[0], "\r\n: ") && !strpbrk(h[1], "\r\n"));
}

void http_reply(struct request *r, unsigned int status, const char *type, const void *data,
		size_t len, const char *const *headers)
{
	check_headers(headers);
	if (!answer(r, status))
		return;
	if (type && strcmp(type, "application/json") == 0)
		check_json(status, data, len);
	else
		MUST(status < 400);
}

void http_reply_stream(struct request *r, unsigned int status, const char *type, int64_t size,
		       const char *const *headers)
{
	struct rig_call *c = call_of(r);

	check_headers(headers);
	if (!answer(r, status))
		return;
	MUST(status < 400 && r->ops && r->ops->pull);
	c->stream = true;
	c->lines = strcmp(type, "application/x-ndjson") == 0;
	c->size = size;
}

void http_reply_upgrade(struct request *r, const char *const *headers)
{
	check_headers(headers);
	if (answer(r, 101))
		call_of(r)->upgrade = true;
	MUST(r->ops && r->ops->upgraded);
}

void http_upgrade_close(struct request *r)
{
	struct rig_call *c = call_of(r);

	if (!r->upgraded)
		return;
	r->upgraded = NULL;
	close_fd(&c->socket);
}

void http_wake(struct request *r)
{
	MUST(!call_of(r)->ended); /* answers are looked for in every turn */
}

const char *http_header(struct request *r, const char *name)
{
	static const char *const all[][2] = {{"Upgrade", "websocket"},
					     {"Connection", "Upgrade"},
					     {"Sec-WebSocket-Version", "13"},
					     {"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}};

	if (strcmp(name, "Range") == 0)
		return call_of(r)->range;
	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (strcmp(all[i][0], name) == 0)
			return all[i][1];
	return NULL;
}

static struct rig_call *free_call(struct rig *g)
{
	for (unsigned i = 0; i < RIG_CALLS; i++)
		if (!g->call[i].there)
			return &g->call[i];
	return NULL;
}

/* As http_on_request() does it. */
static void feed(struct request *r, const uint8_t *p, size_t len)
{
	const struct route *route = r->match.route;

	if (route->begin)
		route->begin(r);
	while (len && !r->reply) {
		size_t n = len;

		if (r->ops && r->ops->body)
			n = r->ops->body(r, p, len);
		else
			intake_body(r, p, len);
		MUST(n <= len);
		if (!n)
			break; /* no room: of what is left nobody will hear */
		p += n;
		len -= n;
	}
	r->phase = REQUEST_WAIT;
	if (!r->reply && route->finish && !len)
		route->finish(r);
	buf_free(&r->body);
}

struct rig_call *rig_request(struct rig *g, const char *method, const char *path, const char *query,
			     const void *body, size_t len)
{
	struct rig_call *c = free_call(g);
	struct request *r;

	if (!c)
		return NULL;
	*c = (struct rig_call){.there = true, .socket = -1, .peer = -1, .size = -1};
	buf_init(&c->out, 1u << 27);
	r = &c->r;
	r->http = &g->d.http;
	r->uri = strdup(path);
	r->query = query ? strdup(query) : NULL;
	r->start_ns = now_ns;
	r->phase = REQUEST_BODY;
	snprintf(r->method, sizeof(r->method), "%s", method);
	buf_init(&r->body, LIMIT_JSON_BODY);
	list_add_tail(&g->d.http.requests, &r->link);
	if (route_find(api_routes, api_route_count, method, path, &r->match) == ROUTE_OK)
		feed(r, body, len);
	else
		rig_leave(c);
	return c->there ? c : NULL;
}

void rig_leave(struct rig_call *c)
{
	struct request *r = &c->r;

	if (!c->there)
		return;
	if (r->ops && r->ops->end)
		r->ops->end(r);
	c->ended = true;
	close_fd(&c->socket);
	close_fd(&c->peer);
	list_del(&r->link);
	buf_free(&r->body);
	buf_free(&c->out);
	free(r->uri);
	free(r->query);
	c->there = false;
}

/* Of an exec, a command, a list: every line an object; those of events are numbered. */
static void check_lines(struct rig_call *c)
{
	const uint8_t *p = buf_data(&c->out), *end;
	size_t len = buf_len(&c->out), used = 0;

	while (used < len && (end = memchr(p + used, '\n', len - used))) {
		json_t *o = json_loadb((const char *)p + used, (size_t)(end - p) - used,
				       JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
		const char *type = json_string_value(json_object_get(o, "type"));
		json_t *seq = json_object_get(o, "seq");

		MUST(json_is_object(o) && !c->exited);
		if (type && seq)
			MUST(json_integer_value(seq) == (json_int_t)c->seq++);
		c->exited = type && strcmp(type, "exit") == 0;
		json_decref(o);
		used = (size_t)(end - p) + 1;
	}
	buf_consume(&c->out, used);
}

/* What there is of a streamed answer. True: it is over. */
static bool pull(struct rig_call *c)
{
	static char out[PULL_BYTES];
	ssize_t n = 0;

	for (int i = 0; i < 64; i++) {
		size_t max = sizeof(out);

		/* The library asks for no more than what the answer was said to have. */
		if (c->size >= 0 && (uint64_t)c->size - c->pulled < max)
			max = (size_t)((uint64_t)c->size - c->pulled);
		if (max == 0)
			return true;
		n = c->r.ops->pull(&c->r, out, max);
		if (n <= 0)
			break;
		MUST((size_t)n <= max);
		c->pulled += (uint64_t)n;
		if (c->lines) {
			MUST(buf_append(&c->out, out, (size_t)n) == 0);
			check_lines(c);
		}
	}
	MUST(n >= PULL_ABORT);
	if (n == PULL_END) {
		MUST(c->size < 0 || c->pulled == (uint64_t)c->size);
		MUST(buf_len(&c->out) == 0);
	}
	return n < 0;
}

static void upgrade(struct rig_call *c)
{
	static char handle;
	int sv[2];

	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
	c->upgrade = false;
	c->socket = sv[0];
	c->peer = sv[1];
	c->r.upgraded = (struct MHD_UpgradeResponseHandle *)(void *)&handle;
	c->r.ops->upgraded(&c->r, sv[0], "", 0);
}

static void serve(struct rig_call *c)
{
	char drop[4096];

	if (!c->there || !c->status || c->stalled)
		return;
	if (c->upgrade)
		upgrade(c);
	else if (c->status == 101) {
		while (c->peer >= 0 && io_read_some(c->peer, drop, sizeof(drop)) > 0)
			;
		if (!c->r.upgraded)
			rig_leave(c);
	} else if (!c->stream || pull(c)) {
		rig_leave(c);
	}
}

/* --- VMMs and agents ---------------------------------------------------------------------- */

static int new_vmm(struct rig *g, int fd)
{
	for (unsigned i = 0; i < RIG_VMMS; i++)
		if (g->vmm[i].fd < 0) {
			g->vmm[i] = (struct rig_vmm){.fd = fd};
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
			child = new_vmm(g, fds[first++]);
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
			serve(&g->call[k]);
	}
}

void rig_wait(struct rig *g, uint64_t ns)
{
	now_ns += ns;
	rig_turn(g);
}

/* A VMM whose other end the rig has; its process is one of the rig's. */
static void give_vmm(struct rig *g, struct vmm *v)
{
	struct err err = {0};
	int ctl, peer;

	vmm_init(v, &g->d.vmms);
	MUST(vmm_make_ends(v, &ctl, &peer, &err) == 0);
	MUST(loop_add(&g->d.loop, &v->ctl, ctl, EPOLLIN) == 0);
	MUST(new_vmm(g, peer) >= 0);
	v->pid = (pid_t)rig_new_process();
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
	t->root.fd = memfd_create("root", MFD_CLOEXEC);
	list_init(&t->vms);
	list_init(&t->pool);
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
	now_ns = SECOND_NS;
	memset(process, 0, sizeof(process));
	memset(g, 0, sizeof(*g));
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
	make_operator(&d->egress.op);
	d->http.d = d;
	d->http.loop = &d->loop;
	list_init(&d->http.requests);
	list_init(&d->http.hups);
	make_template(g);
	for (unsigned i = 0; i < RIG_SANDBOXES; i++)
		make_sandbox(g, i);
}

void rig_free(struct rig *g)
{
	struct daemon *d = &g->d;

	for (unsigned i = 0; i < RIG_CALLS; i++)
		rig_leave(&g->call[i]);
	pool_stop(&d->pool);
	while (!list_empty(&d->registry.live))
		sandbox_end(list_entry(d->registry.live.next, struct sandbox, link), false, "over");
	templates_stop(&d->templates);
	for (unsigned i = 0; i < RIG_VMMS; i++)
		rig_vmm_gone(g, i);
	for (unsigned i = 0; i < RIG_AGENTS; i++)
		rig_hang_up(g, i);
	for (int i = 0; i < 8; i++) {
		now_ns += 700 * SECOND_NS;
		MUST(loop_run_once(&d->loop, 0) == 0);
	}
	MUST(registry_empty(&d->registry) && list_empty(&d->vmms.vmms));
	MUST(d->registry.places == 0 && list_empty(&d->http.requests) && d->ndiffs == 0);
	templates_free(&d->templates);
	operator_free(&d->egress.op);
	loop_free(&d->loop);
}
