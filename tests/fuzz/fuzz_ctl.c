/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VMM's end of its control socket. The input is a script of messages, in order and out of it,
 * with descriptors that fit, that do not, or of another number, and of packets that are no
 * messages; between them the machine (on a KVM that is played, and that may fail) has something to
 * say. It may be paused, forked, and become its own child.
 *
 * Every question gets one answer with its number; nothing comes behind the last word; and no
 * descriptor stays behind that the machine has no use for.
 */
#define _GNU_SOURCE
#include "fake_kvm.h"
#include "input.h"

#include "lib/fdpass.h"
#include "proto/guest.h"
#include "vmm/ctl.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/socket.h>
#include <unistd.h>

#define ASKED_MAX 64u
#define STEPS     64u

struct question {
	uint32_t type, id; /* of the answer */
};

struct world {
	struct loop loop;
	struct ctl c;
	int daemon; /* the other end of the control socket */
	int child;  /* and that of a child's, which the VMM is about to become; -1: of none */
	struct question asked[ASKED_MAX];
	unsigned nasked, connects;
	bool booted, exited;
};

/* --- what comes from the VMM -------------------------------------------------------------- */

static void answered(struct world *w, uint32_t type, uint32_t id)
{
	/* In order: the control loop does one thing at a time. */
	MUST(w->nasked && w->asked[0].type == type && w->asked[0].id == id);
	memmove(w->asked, w->asked + 1, --w->nasked * sizeof(w->asked[0]));
}

static void take(struct world *w, const struct ctl_msg *m)
{
	MUST(!w->exited && m->type & 0x80);
	switch (m->type) {
	case CTL_BOOTED:
		w->booted = true;
		break;
	case CTL_CONNECTED:
	case CTL_REFUSED:
		MUST(w->connects-- > 0 && (m->type == CTL_CONNECTED || m->code));
		break;
	case CTL_STATS:
	case CTL_PAUSED:
	case CTL_FORKED:
	case CTL_RECORDED:
	case CTL_LEARNED:
		MUST(!m->code == !m->text[0] || m->type == CTL_STATS);
		answered(w, m->type, m->id);
		break;
	case CTL_EXITED:
		MUST(m->code >= CTL_EXIT_RESET && m->code <= CTL_EXIT_STOPPED && m->text[0]);
		w->exited = true;
		break;
	case CTL_STATUS:
	case CTL_DISK:
	case CTL_GUEST_CONNECT:
	case CTL_HERE:
		break;
	default:
		MUST(!"a message of the daemon's");
	}
}

static void take_all(struct world *w)
{
	int fds[FDPASS_MAX], rc;
	struct ctl_msg m;

	while ((rc = ctl_recv(w->daemon, &m, fds)) == 1)
		take(w, &m);
	MUST(rc == -EAGAIN || rc == 0);
}

/* --- what goes to it ---------------------------------------------------------------------- */

/* A descriptor that is none of those asked for. */
static int any_fd(uint8_t kind)
{
	int fd = kind % 3 == 0 ? open("/dev/null", O_RDONLY | O_CLOEXEC)
			       : fake_kvm_file("", kind % 3 == 1 ? 0 : 1);

	MUST(fd >= 0);
	return fd;
}

static void boot_fds(int *fds, struct ctl_msg *m, uint8_t odd)
{
	struct machine_config cfg = fake_kvm_config();

	memcpy(fds, cfg.fds, sizeof(cfg.fds));
	if (odd < 0xf0) { /* most of them boot */
		m->mem_mib = cfg.mem_mib + 2 * (odd % 4u);
		m->vcpus = 1 + odd % 3u;
		m->disk_mib = cfg.disk_mib;
	}
}

static void fork_fds(struct world *w, int *fds)
{
	int sv[2];

	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
	fds[CTL_FORK_CONTROL] = sv[1];
	fds[CTL_FORK_CONSOLE] = fake_kvm_file("", 0);
	MUST(ftruncate(fds[CTL_FORK_CONSOLE], CONSOLE_RING_SIZE) == 0);
	fake_kvm_layer(&fds[CTL_FORK_PARENT_RW], &fds[CTL_FORK_PARENT_RO]);
	fake_kvm_layer(&fds[CTL_FORK_CHILD_RW], &fds[CTL_FORK_CHILD_RO]);
	fds[CTL_FORK_GATE] = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	MUST(fds[CTL_FORK_GATE] >= 0);
	if (fake_kvm.be_child)
		w->child = fake_kvm_own(sv[0]);
	else
		close(sv[0]);
}

static size_t make_fds(struct world *w, int *fds, struct ctl_msg *m, uint8_t odd)
{
	size_t n = ctl_fd_count(m->type);
	int sv[2];

	if (m->type == CTL_BOOT) {
		boot_fds(fds, m, odd);
	} else if (m->type == CTL_FORK) {
		fork_fds(w, fds);
	} else if (n == 1) {
		MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
		fds[0] = sv[1];
		close(sv[0]);
	}
	if (odd % 16 == 15 && n) { /* one of them is another thing */
		close(fds[odd / 16 % n]);
		fds[odd / 16 % n] = any_fd(odd);
	}
	if (odd % 16 == 14 && n < FDPASS_MAX) /* one more than there should be */
		fds[n++] = any_fd(odd);
	else if (odd % 16 == 13 && n)
		close(fds[--n]);
	return n;
}

static void expect(struct world *w, const struct ctl_msg *m)
{
	static const uint32_t answers[][2] = {{CTL_STAT, CTL_STATS},
					      {CTL_PAUSE, CTL_PAUSED},
					      {CTL_FORK, CTL_FORKED},
					      {CTL_RECORD, CTL_RECORDED},
					      {CTL_LEARN, CTL_LEARNED}};

	w->connects += m->type == CTL_CONNECT;
	for (size_t i = 0; i < ARRAY_SIZE(answers); i++)
		if (answers[i][0] == m->type && !(m->type == CTL_FORK && fake_kvm.be_child))
			w->asked[w->nasked++] = (struct question){answers[i][1], m->id};
}

static void send_message(struct world *w, struct input *in)
{
	static const uint32_t types[] = {CTL_BOOT,   CTL_CONNECT, CTL_STAT,   CTL_PAUSE,
					 CTL_FORK,   CTL_RECORD,  CTL_LEARN,  CTL_WARM,
					 CTL_EGRESS, CTL_ACCEPT,  CTL_REJECT, CTL_STOP};
	uint8_t op = input_u8(in), odd = input_u8(in), wire[CTL_WIRE_SIZE];
	struct ctl_msg m = {.type = op & 0x80 ? input_u8(in) : types[op % 12],
			    .id = input_u8(in),
			    .code = input_u8(in) % 4,
			    .port = op & 0x40 ? GUEST_AGENT_PORT : (uint32_t)input_int(in, 4)};
	int fds[FDPASS_MAX + 1];
	size_t n, want;
	int rc;

	if (odd >= 0xf0) {
		m.mem_mib = (uint32_t)input_int(in, 4);
		m.vcpus = (uint32_t)input_int(in, 4);
		m.disk_mib = (uint32_t)input_int(in, 4);
		memset(m.text, 'x', input_int(in, 2) % CTL_TEXT_MAX);
	}
	fake_kvm.be_child = odd % 4 == 1 && w->booted && m.type == CTL_FORK;
	take_all(w);
	want = ctl_fd_count(m.type);
	n = make_fds(w, fds, &m, odd);
	if (n == want)
		expect(w, &m);
	ctl_pack(wire, &m);
	rc = fdpass_send(w->daemon, wire, sizeof(wire), fds, n);
	if (w->child >= 0) {
		/* What the parent has to say is of no interest: this is about the child. */
		close(w->daemon);
		w->daemon = w->child;
		w->child = -1;
		w->connects = w->nasked = 0;
	}
	MUST(rc == 0 || rc == -EPIPE || rc == -EAGAIN);
	while (n)
		close(fds[--n]);
}

/* No message: any bytes, of any length. */
static void send_bytes(struct world *w, struct input *in)
{
	uint8_t wire[CTL_WIRE_SIZE + 8];
	size_t len = input_int(in, 2) % (sizeof(wire) + 1);

	memset(wire, 0, sizeof(wire));
	input_bytes(in, wire, in->left < len ? in->left : len);
	(void)!send(w->daemon, wire, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* The guest does something, at its processor. */
static void guest_acts(struct world *w, struct input *in)
{
	struct kvm_run *run = w->c.machine.nvcpus ? w->c.machine.vcpus[0].run : NULL;
	struct exit_reason why = {0};

	if (!w->booted || !run || w->c.machine.paused)
		return;
	run->exit_reason = input_u8(in) % 32 ? KVM_EXIT_IO : KVM_EXIT_SHUTDOWN;
	run->io.direction = KVM_EXIT_IO_OUT;
	run->io.size = 4;
	run->io.port = GUEST_STATUS_PORT;
	run->io.count = 1 + input_u8(in) % 8;
	run->io.data_offset = 4096;
	if (exit_handle(&w->c.machine, &w->c.machine.vcpus[0], &why))
		machine_end(&w->c.machine, &why);
}

static bool turn(struct world *w)
{
	for (int i = 0; i < 4 && !w->loop.quit; i++)
		MUST(loop_run_once(&w->loop, 0) == 0);
	take_all(w);
	MUST(!w->exited || w->loop.quit);
	if (w->loop.quit)
		return false;
	MUST(w->nasked == 0);
	return true;
}

static bool step(struct world *w, struct input *in)
{
	uint8_t op = input_u8(in);

	switch (op % 8) {
	case 0:
		send_bytes(w, in);
		break;
	case 1:
		guest_acts(w, in);
		break;
	case 2:
		fake_kvm.fail = op / 8 % 2 ? 1 + input_u8(in) : 0;
		fake_kvm.dirty = op;
		break;
	default:
		send_message(w, in);
		break;
	}
	return turn(w);
}

/* --- descriptors -------------------------------------------------------------------------- */

static bool is_machines(const struct machine *m, int fd)
{
	const struct layers *l = &m->disk.layers;

	for (unsigned i = 0; i < m->nvcpus; i++)
		if (m->vcpus[i].fd == fd)
			return true;
	for (unsigned i = 0; i < VSOCK_SLOTS; i++)
		if (m->vsock.conn[i].state != VSOCK_CONN_FREE && m->vsock.conn[i].fd == fd)
			return true;
	for (unsigned i = 0; i < LAYERS_MAX; i++)
		if (l->layer[i].fd == fd)
			return true;
	return fd == m->kvm.kvm_fd || fd == m->kvm.fd || fd == m->handover_fd ||
	       fd == m->vsock.epfd || fd == m->vsock.again_fd || fd == l->top_rw;
}

static void check_fds(const struct world *w)
{
	for (int fd = fake_kvm.first_fd; fd < fake_kvm.first_fd + 200; fd++) {
		if (fcntl(fd, F_GETFD) < 0 || fd == w->loop.epfd || fd == w->loop.wakefd ||
		    fd == w->c.fd)
			continue;
		if (!w->booted || !is_machines(&w->c.machine, fd)) {
			char path[64], name[256] = "";

			snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
			(void)!readlink(path, name, sizeof(name) - 1);
			fprintf(stderr, "descriptor %d was left: %s\n", fd, name);
			abort();
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;
	struct input in = {data, size};
	bool lives = true;
	int sv[2];

	memset(&w, 0, sizeof(w));
	w.child = -1;
	fake_kvm_begin();
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
	w.daemon = fake_kvm_own(sv[0]);
	MUST(loop_init(&w.loop) == 0);
	ctl_init(&w.c, &w.loop, sv[1]);
	MUST(loop_add(&w.loop, &w.c.src, sv[1], EPOLLIN) == 0);
	for (unsigned i = 0; in.left && i < STEPS && lives; i++)
		lives = step(&w, &in);
	/* One that goes on has nothing it does not need; one that ends leaves that to its end. */
	if (lives)
		check_fds(&w);
	if (lives) {
		/* Not by closing: somebody who looks at /proc/PID/fd may have hold of it just now.
		 */
		MUST(shutdown(w.daemon, SHUT_RDWR) == 0);
		close_fd(&w.daemon);
		for (int i = 0; i < 4 && !w.loop.quit; i++)
			MUST(loop_run_once(&w.loop, 0) == 0);
		MUST_SOON(w.loop.quit); /* without its daemon it does not stay */
	}
	fake_kvm_drop(&w.c.machine);
	loop_free(&w.loop);
	fake_kvm_end();
	return 0;
}
