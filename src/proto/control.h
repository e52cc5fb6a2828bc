/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control messages between podflared and podflare-vmm: one SOCK_SEQPACKET
 * socket (descriptor CTL_FD of the VMM), every message a struct ctl_msg in its
 * fixed wire form, descriptors beside it by SCM_RIGHTS. The number of
 * descriptors is a property of the type and is checked on receipt.
 *
 * The daemon starts a conversation with CTL_BOOT; the VMM answers CTL_BOOTED
 * or CTL_EXITED. Closing the socket ends the VMM.
 * Both ends check every field: a VMM may have been taken over by its guest.
 *
 * fork: CTL_FORK brings the child's own socket. Its first message is CTL_HERE, ahead of its gate:
 * by that the daemon knows whose process it is; then comes CTL_BOOTED or CTL_EXITED.
 */
#pragma once

#include "lib/cleanup.h"

#include <stddef.h>
#include <stdint.h>

#define CTL_FD       3
#define CTL_TEXT_MAX 1024

enum ctl_type {
	/* daemon -> VMM */
	CTL_BOOT = 1,    /* mem_mib, vcpus, disk_mib, text = extra kernel command line;
			  * CTL_BOOT_FDS fds */
	CTL_CONNECT = 2, /* id, port; 1 fd: this end becomes the stream */
	CTL_STAT = 3,    /* id */
	CTL_STOP = 4,    /* end at once */
	CTL_PAUSE = 5,   /* id; stop for good, to be forked from */
	CTL_FORK = 6,    /* id, code = enum ctl_fork_kind; CTL_FORK_FDS fds */
	CTL_RECORD = 7,  /* id, code = enum ctl_hotset; to a rehearsal: the set is complete */
	CTL_LEARN = 8,   /* id; to a paused one: its rehearsal is over */
	CTL_WARM = 9,    /* code = enum ctl_hotset; make its pages ready, without an answer */
	CTL_EGRESS = 10, /* code = 1: take connections that the guest opens to GUEST_EGRESS_PORT; 0:
			  * refuse them (as at boot and in every forked child), and reset those
			  * that there are */
	CTL_ACCEPT = 11, /* id of a CTL_GUEST_CONNECT; 1 fd: this end becomes the stream */
	CTL_REJECT = 12, /* id of a CTL_GUEST_CONNECT */
	/* VMM -> daemon */
	CTL_BOOTED = 0x81,    /* vCPUs run; of a forked child: value[] by enum ctl_booted */
	CTL_STATUS = 0x82,    /* code = value the guest wrote to the status port */
	CTL_CONNECTED = 0x83, /* id */
	CTL_REFUSED = 0x84,   /* id, code = positive errno */
	CTL_STATS = 0x85,     /* id, value[] by enum ctl_stat */
	CTL_EXITED = 0x86,    /* code = enum ctl_exit, text = sentence; the VMM ends */
	CTL_PAUSED = 0x87,    /* id, code = 0 or positive errno, text */
	CTL_FORKED = 0x88,    /* id, code = 0 or positive errno, text, value[] by enum ctl_forked */
	/* The host failed a request of the guest's disk: code = positive errno (ENOSPC, EIO...),
	 * value[0] = failures since it booted, or since it was forked. At most one a second. */
	CTL_DISK = 0x89,
	CTL_RECORDED = 0x8a, /* id, code = 0 or positive errno, text */
	CTL_LEARNED =
		0x8b, /* id, code = 0 or positive errno, text, value[] = pages by ctl_hotset */
	/* id (chosen by the VMM, never 0; of no other message), port: the guest opens a connection,
	 * and waits for CTL_ACCEPT or CTL_REJECT, one of which is to come unless CTL_EGRESS 0 does.
	 * At most 16 are sent before they are answered (vmm/virtio/vsock.h). That the guest gives
	 * one up is not told of: what comes for an id that nobody waits for is dropped. */
	CTL_GUEST_CONNECT = 0x8c,
	CTL_HERE = 0x8d, /* of a forked child, at once */
};

/* Order of the descriptors of CTL_BOOT. */
enum ctl_boot_fd {
	CTL_BOOT_KVM,     /* /dev/kvm */
	CTL_BOOT_KERNEL,  /* vmlinux, ELF64 */
	CTL_BOOT_INITRD,  /* cpio */
	CTL_BOOT_ROOT,    /* root image: sealed memfd or file, mapped read-only */
	CTL_BOOT_CONSOLE, /* memfd of CONSOLE_RING_SIZE bytes */
	/* First layer of the disk, an empty file opened twice (lib/layerfile.h). */
	CTL_BOOT_DISK_RW,
	CTL_BOOT_DISK_RO,
	CTL_BOOT_FDS
};

/* Order of the descriptors of CTL_FORK. */
enum ctl_fork_fd {
	CTL_FORK_CONTROL, /* the child's end of its control socket */
	CTL_FORK_CONSOLE, /* the child's console ring */
	/* New tops of both disks, each an empty file as in CTL_BOOT. A paused machine needs none of
	 * its own; it gets one all the same, so that the number is one. */
	CTL_FORK_PARENT_RW,
	CTL_FORK_PARENT_RO,
	CTL_FORK_CHILD_RW,
	CTL_FORK_CHILD_RO,
	/* The child reads one byte from it before it takes memory of its own or runs its guest, and
	 * ends when there will be none: the daemon has then seen to what must be so before. A file
	 * that always has one (/dev/zero) means that nothing must. */
	CTL_FORK_GATE,
	CTL_FORK_FDS
};

/* What kind of child CTL_FORK is to make. */
enum ctl_fork_kind {
	CTL_FORK_PLAIN,
	/*
	 * The child of a paused machine whose writes to its memory are logged, from which the
	 * machine learns what all children after it will write (vmm/core/hotset.h). It must not
	 * run foreign code.
	 */
	CTL_FORK_REHEARSAL,
	/*
	 * It is never forked or paused: before its guest runs it has given up what that would take
	 * (vmm/jail/jail.h). CTL_FORK and CTL_PAUSE are refused with EPERM.
	 */
	CTL_FORK_LEAF,
	CTL_FORK_KINDS
};

/* Moments of a child's life with pages of their own. */
enum ctl_hotset {
	CTL_HOTSET_READY, /* from the fork to the answer to RENEW; made ready by the fork itself */
	CTL_HOTSET_CALL,  /* its first call */
	CTL_HOTSETS
};

/* What CTL_FORKED tells in value[]. */
enum ctl_forked {
	CTL_FORKED_PID,
	CTL_FORKED_PARK_US, /* until no vCPU ran; together the pause of the parent */
	CTL_FORKED_SAVE_US,
	CTL_FORKED_FORK_US,
};

/* What CTL_BOOTED of a forked child tells in value[]. */
enum ctl_booted {
	CTL_BOOTED_VM_US, /* from fork(2) to running vCPUs */
};

enum ctl_exit {
	CTL_EXIT_RESET = 1,    /* reboot or triple fault (a kernel panic ends so, too) */
	CTL_EXIT_POWEROFF = 2, /* ACPI S5 */
	CTL_EXIT_ERROR = 3,    /* KVM or the VMM could not go on */
	CTL_EXIT_BOOT = 4,     /* never got to run the guest */
	CTL_EXIT_STOPPED = 5,  /* CTL_STOP */
};

enum ctl_stat {
	CTL_STAT_EXITS,        /* vCPU exits since boot */
	CTL_STAT_NOTIFIES,     /* virtio queue notifications */
	CTL_STAT_IRQS,         /* interrupts raised */
	CTL_STAT_GUEST_FAULTS, /* protocol violations by the guest */
	CTL_STAT_STREAMS,      /* open vsock connections */
	CTL_STAT_ROM_WRITES,   /* guest writes to read-only memory, ignored */
	CTL_STAT_DISK_BYTES,   /* storage that the top layer takes up on the host */
	CTL_STAT_DISK_LAYERS,  /* files that the disk is made of */
	CTL_STAT_DISK_ERRORS,  /* requests that the host failed */
	CTL_STAT_COUNT
};

struct ctl_msg {
	uint32_t type; /* enum ctl_type */
	uint32_t id;   /* chosen by the daemon, echoed in the answer */
	uint32_t code;
	uint32_t port;
	uint32_t mem_mib;
	uint32_t vcpus;
	uint32_t disk_mib;
	uint64_t value[CTL_STAT_COUNT];
	char text[CTL_TEXT_MAX]; /* NUL-terminated */
};

/* Wire form: u32 magic, seven u32 fields in the order above, values, text; little-endian. */
#define CTL_MAGIC     0x31434650u /* "PFC1" */
#define CTL_WIRE_SIZE (8u * 4u + CTL_STAT_COUNT * 8u + CTL_TEXT_MAX)

void ctl_pack(uint8_t out[CTL_WIRE_SIZE], const struct ctl_msg *m);
/* 0, -EPROTO (magic, unknown type, text without end). */
__must_check int ctl_unpack(const uint8_t in[CTL_WIRE_SIZE], struct ctl_msg *m);

/* Number of descriptors that a message of this type carries. */
size_t ctl_fd_count(uint32_t type);

/* Sends; descriptors stay the caller's. 0 or -errno (-EAGAIN when the socket is full). */
__must_check int ctl_send(int sock, const struct ctl_msg *m, const int *fds);

/*
 * Receives without waiting: 1 and a message, 0 at EOF, -EAGAIN, or -errno (-EPROTO: the peer is
 * broken; -EMFILE: *m is the message, but this process has too many descriptors for its own). fds
 * must have room for FDPASS_MAX; the first ctl_fd_count() entries become the caller's.
 */
__must_check int ctl_recv(int sock, struct ctl_msg *m, int *fds);
