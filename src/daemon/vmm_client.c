/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Boot of a VMM and the messages of its control socket. Its end is known from
 * there (CTL_EXITED with the reason, or EOF) and from the process (vmm_proc.c);
 * whichever comes first, the reason is told once.
 */
#define _GNU_SOURCE
#include "daemon/limits.h"
#include "daemon/vmm_impl.h"
#include "lib/fdpass.h"
#include "lib/io.h"
#include "lib/layerfile.h"
#include "lib/log.h"
#include "proto/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

/* After its last word a VMM has this long to exit by itself. */
#define EXIT_NS (2 * SECOND_NS)

void vmm_clean_line(char *s)
{
	for (; *s; s++)
		if (*s < ' ' || *s > '~')
			*s = *s == '\n' ? ' ' : '?';
}

void vmm_end(struct vmm *v, const char *reason)
{
	if (v->ended)
		return;
	v->ended = true;
	vmm_end_forks(v, reason);
	v->ops->ended(v, reason);
}

static void vmm_exited(struct vmm *v, struct ctl_msg *m)
{
	static const char *const texts[] = {
		[CTL_EXIT_RESET] = "the guest rebooted or crashed",
		[CTL_EXIT_POWEROFF] = "the guest powered off",
		[CTL_EXIT_ERROR] = "the virtual machine could not go on",
		[CTL_EXIT_BOOT] = "the virtual machine could not be set up",
		[CTL_EXIT_STOPPED] = "it was stopped",
	};
	const char *text = m->code < ARRAY_SIZE(texts) ? texts[m->code] : NULL;

	vmm_clean_line(m->text);
	if (m->text[0])
		text = m->text;
	vmm_end(v, text ? text : "the virtual machine ended");
}

void vmm_close_ctl(struct vmm *v)
{
	int fd = v->ctl.fd;

	if (fd < 0)
		return;
	loop_del(&v->ctl);
	close(fd);
	v->ctl.fd = -1;
	if (v->proc.loop)
		loop_timer_set(v->host->loop, &v->exit_timer, EXIT_NS);
}

void vmm_breach(struct vmm *v, const char *text)
{
	log_warn("VMM %d %s", (int)v->pid, text);
	vmm_kill(v, false);
	vmm_close_ctl(v);
}

/* A positive errno out of a message. */
static int errno_of(uint32_t code)
{
	return code > 0 && code < 4096 ? (int)code : EIO;
}

/*
 * It has booted, so it is in its jail, which has a limit for disks of any size: from here on no
 * layer of it, or of a copy, gets larger than this one.
 */
static void vmm_limit_layers(struct vmm *v)
{
	rlim_t most = (rlim_t)v->size.disk_mib << 20;
	struct rlimit r = {.rlim_cur = most, .rlim_max = most};

	if (v->pid && v->boot.disk_mib && prlimit(v->pid, RLIMIT_FSIZE, &r, NULL) < 0)
		log_warn("the files of VMM %d could not be limited: %s", (int)v->pid,
			 strerror(errno));
}

static void vmm_message(struct vmm *v, struct ctl_msg *m)
{
	switch (m->type) {
	case CTL_BOOTED:
		vmm_limit_layers(v);
		break;
	case CTL_STATUS:
		if (v->ops->status)
			v->ops->status(v, m->code);
		break;
	case CTL_REFUSED:
		if (v->ops->refused)
			v->ops->refused(v, m->id, errno_of(m->code));
		break;
	case CTL_EXITED:
		vmm_exited(v, m);
		vmm_close_ctl(v);
		break;
	case CTL_PAUSED:
		vmm_clean_line(m->text);
		v->paused = m->code == 0;
		if (v->ops->paused)
			v->ops->paused(v, m->code ? errno_of(m->code) : 0, m->text);
		break;
	case CTL_RECORDED:
		vmm_clean_line(m->text);
		if (v->ops->recorded)
			v->ops->recorded(v, m->code ? errno_of(m->code) : 0, m->text);
		break;
	case CTL_LEARNED:
		vmm_clean_line(m->text);
		if (v->ops->learned)
			v->ops->learned(v, m->code ? errno_of(m->code) : 0, m->text, m->value);
		break;
	case CTL_FORKED:
		vmm_on_forked(v, m);
		break;
	case CTL_DISK:
		if (v->ops->disk)
			v->ops->disk(v, errno_of(m->code), m->value[0]);
		break;
	case CTL_GUEST_CONNECT:
		if (vmm_on_guest_connect(v, m))
			break;
		vmm_breach(v, "asked for a connection that there is not");
		break;
	case CTL_CONNECTED:
	case CTL_STATS:
	case CTL_HERE:
		break;
	default:
		vmm_breach(v, "sent a message that only we send");
		break;
	}
}

void vmm_poll(struct vmm *v)
{
	/* Bounded: a VMM that floods us gets its turn again like everybody else. */
	for (int i = 0; i < 64 && v->ctl.fd >= 0; i++) {
		int fds[FDPASS_MAX];
		struct ctl_msg m;
		int rc;

		if (v->listening && !vmm_claim_hear(v))
			return;
		rc = v->ctl.fd < 0 ? -EAGAIN : ctl_recv(v->ctl.fd, &m, fds);
		if (rc == -EAGAIN)
			return;
		/*
		 * It has closed without reading all that we sent. That is told once, ahead of what
		 * it had still to say.
		 */
		if (rc == -ECONNRESET)
			continue;
		if (rc <= 0) {
			if (rc == -EPROTO)
				vmm_breach(v, "broke the control protocol");
			vmm_close_ctl(v);
			return;
		}
		for (size_t n = ctl_fd_count(m.type); n; n--)
			close(fds[n - 1]);
		vmm_message(v, &m);
	}
}

static void vmm_on_ctl(struct loop_src *src, uint32_t events)
{
	if (events & EPOLLOUT)
		vmm_guest_flush(src->arg);
	vmm_poll(src->arg);
}

/* --- what is sent ------------------------------------------------------------------------ */

int vmm_send(struct vmm *v, const struct ctl_msg *m, const int *fds)
{
	int rc = v->ctl.fd < 0 ? -ENOTCONN : ctl_send(v->ctl.fd, m, fds);

	if (rc == 0)
		v->sent++;
	return rc;
}

/* Of messages, to learn what one counts for; a socket has room for more. */
#define COST_SAMPLES 4

bool vmm_has_read(const struct vmm *v, uint64_t sent)
{
	int unread, cost = v->host->message_cost;

	if (cost == 0 || ioctl(v->ctl.fd, SIOCOUTQ, &unread) < 0)
		return true;
	/* All are of one size, and are read in order: only what was sent after it may lie there. */
	return (uint64_t)unread <= (v->sent - sent) * (uint64_t)cost;
}

/*
 * Of several, in one socket and with one more each time, the largest: should a kernel count one
 * more than another, an honest VMM must not be taken for one that has not read.
 */
int vmm_message_cost(void)
{
	struct ctl_msg m = {.type = CTL_STOP};
	int sv[2], cost = 0, before = 0;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
		return 0;
	for (int i = 0; i < COST_SAMPLES; i++) {
		int all;

		if (ctl_send(sv[0], &m, NULL) < 0 || ioctl(sv[0], SIOCOUTQ, &all) < 0 ||
		    all <= before) {
			cost = 0;
			break;
		}
		cost = all - before > cost ? all - before : cost;
		before = all;
	}
	close(sv[0]);
	close(sv[1]);
	return cost;
}

/* --- boot -------------------------------------------------------------------------------- */

int vmm_boot(struct vmm *v, const struct vmm_params *p, int ctl, struct err *err)
{
	struct ctl_msg m = {.type = CTL_BOOT,
			    .mem_mib = p->memory_mib,
			    .vcpus = p->vcpus,
			    .disk_mib = p->disk_mib};
	_cleanup_fd int kvm = open(v->host->kvm_path, O_RDWR | O_CLOEXEC), rw = -1, ro = -1;
	int rc;

	if (kvm < 0)
		return err_set(err, errno, "cannot open %s", v->host->kvm_path);
	rc = layerfile_make(v->host->disk_dir, &rw, &ro);
	if (rc < 0)
		return err_set(err, -rc, "cannot make a disk in %s", v->host->disk_dir);
	rc = ctl_send(ctl, &m,
		      (int[CTL_BOOT_FDS]){
			      [CTL_BOOT_KVM] = kvm,
			      [CTL_BOOT_KERNEL] = p->kernel_fd,
			      [CTL_BOOT_INITRD] = p->initramfs_fd,
			      [CTL_BOOT_ROOT] = p->root_fd,
			      [CTL_BOOT_CONSOLE] = v->console_fd,
			      [CTL_BOOT_DISK_RW] = rw,
			      [CTL_BOOT_DISK_RO] = ro,
		      });
	return rc < 0 ? err_set(err, -rc, "cannot tell the VMM to boot") : 0;
}

void vmm_init(struct vmm *v, struct vmm_host *h)
{
	const struct vmm_ops *ops = v->ops;
	const char *owner = v->owner;

	*v = (struct vmm){.host = h,
			  .ops = ops,
			  .owner = owner,
			  .console_fd = -1,
			  .peer_fd = -1,
			  .gate_fd = -1,
			  .claim_fd = -1};
	v->ctl = (struct loop_src){.fd = -1, .fn = vmm_on_ctl, .arg = v};
	v->proc.fd = -1;
	v->deaf = (struct loop_timer){.fn = vmm_on_deaf, .arg = v};
	list_init(&v->link);
	list_init(&v->forks);
	list_init(&v->fork_link);
}

int vmm_make_ends(struct vmm *v, int *ctl, int *peer, struct err *err)
{
	_cleanup_fd int console = memfd_create("console", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int sv[2];

	if (console < 0 || ftruncate(console, CONSOLE_RING_SIZE) < 0 ||
	    fcntl(console, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return err_set(err, errno, "cannot make the console's memory file");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0)
		return err_set(err, errno, "cannot make a control socket");
	v->console_fd = take_fd(&console);
	*ctl = sv[0];
	*peer = sv[1];
	return 0;
}

int vmm_start(struct vmm *v, struct vmm_host *h, const struct vmm_params *p, struct err *err)
{
	_cleanup_fd int ctl = -1, peer = -1;
	int rc;

	vmm_init(v, h);
	rc = vmm_make_ends(v, &ctl, &peer, err);
	if (rc < 0)
		return rc;
	v->size = (struct vm_size){p->memory_mib, p->vcpus, p->disk_mib};
	v->boot = *p;
	rc = vmm_group_make(v, &v->size, NULL, err);
	v->booting = v->group != NULL; /* otherwise it waits in the socket for the process */
	if (rc == 0 && !v->booting)
		rc = vmm_boot(v, p, ctl, err);
	if (rc == 0) {
		rc = vmm_spawn(v, p->id, peer);
		if (rc < 0)
			rc = err_set(err, -rc, "cannot start the VMM %s", h->vmm_path);
	}
	if (rc == 0) {
		rc = loop_add(h->loop, &v->ctl, ctl, EPOLLIN);
		if (rc < 0)
			rc = err_set(err, -rc, "cannot watch the VMM process");
		else
			rc = vmm_watch(v, -1, err);
		if (rc < 0) {
			loop_del(&v->ctl);
			vmm_abandon(v);
		}
	}
	if (rc < 0) {
		vmm_group_leave(v);
		close_fd(&v->console_fd);
		return rc;
	}
	take_fd(&ctl);
	if (v->group)
		vmm_group_join(v);
	return 0;
}

int vmm_pause(struct vmm *v)
{
	struct ctl_msg m = {.type = CTL_PAUSE, .id = ++v->next_id};

	return vmm_send(v, &m, NULL);
}

int vmm_record(struct vmm *v, enum ctl_hotset set)
{
	struct ctl_msg m = {.type = CTL_RECORD, .id = ++v->next_id, .code = set};

	return vmm_send(v, &m, NULL);
}

int vmm_learn(struct vmm *v)
{
	struct ctl_msg m = {.type = CTL_LEARN, .id = ++v->next_id};

	return vmm_send(v, &m, NULL);
}

void vmm_warm(struct vmm *v, enum ctl_hotset set)
{
	struct ctl_msg m = {.type = CTL_WARM, .code = set};

	/* A full socket only costs the gain. */
	if (v->ctl.fd >= 0 && vmm_send(v, &m, NULL) < 0)
		log_info("VMM %d could not be told what it will write", (int)v->pid);
}

int64_t vmm_connect(struct vmm *v, uint32_t port, int fd)
{
	struct ctl_msg m = {.type = CTL_CONNECT, .id = ++v->next_id, .port = port};
	int rc = vmm_send(v, &m, &fd);

	return rc < 0 ? rc : (int64_t)m.id;
}
