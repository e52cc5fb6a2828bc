/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon's part for a guest that opens connections (egress_guest.c): switches,
 * answers, echoes what comes, forks. Prints a line for each thing that was tried:
 * its name, the guest's answer, and how often the VMM has asked meanwhile.
 *
 * usage: vmegress VMM VMLINUX INITRAMFS ROOT VCPUS [narrow]
 *   narrow  a control socket that holds few messages, and nobody reads them
 * exit: 0 when everything has been tried.
 */
#define _GNU_SOURCE
#include "vmtool.h"
#include "lib/fdpass.h"
#include "lib/io.h"

#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_STREAMS 256
#define SECONDS(n)  ((n) << 8) /* for the order 'm' */

enum rule { ACCEPT, REJECT, WAIT };

struct side {
	struct vmtool t;
	int orders; /* stream to the guest's program */
	int stream[MAX_STREAMS];
	unsigned streams, asked;
	uint32_t waiting[MAX_STREAMS];
	unsigned nwaiting;
};

static void send_msg(struct side *s, uint32_t type, uint32_t id, uint32_t code)
{
	struct ctl_msg m = {.type = type, .id = id, .code = code};
	int sv[2] = {-1, -1};

	if (type == CTL_ACCEPT && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		vmtool_die("socketpair");
	if (ctl_send(s->t.sock, &m, &sv[1]) < 0)
		vmtool_die("sending to the VMM");
	if (type != CTL_ACCEPT)
		return;
	close(sv[1]);
	s->stream[s->streams++] = sv[0];
}

static void egress(struct side *s, uint32_t on)
{
	send_msg(s, CTL_EGRESS, 0, on);
}

static void answer_one(struct side *s, enum rule rule, uint32_t id)
{
	if (rule == WAIT)
		s->waiting[s->nwaiting++] = id;
	else
		send_msg(s, rule == ACCEPT ? CTL_ACCEPT : CTL_REJECT, id, 0);
}

static struct ctl_msg take_message(struct side *s, enum rule rule)
{
	struct ctl_msg m;

	vmtool_recv(&s->t, &m, 0);
	if (m.type != CTL_GUEST_CONNECT)
		return m;
	if (m.port != GUEST_EGRESS_PORT || m.id == 0) {
		fprintf(stderr, "asked for port %u with id %u\n", m.port, m.id);
		exit(1);
	}
	s->asked++;
	answer_one(s, rule, m.id);
	return m;
}

/* Takes all that the VMM has said so far; a figure of the machine after it. */
static uint64_t stat_of(struct side *s, enum rule rule, enum ctl_stat what)
{
	struct ctl_msg m;

	send_msg(s, CTL_STAT, 7, 0);
	do
		m = take_message(s, rule);
	while (m.type != CTL_STATS);
	return m.value[what];
}

/* One that has ended is closed. */
static void echo(int *fd)
{
	static uint8_t buf[65536];
	ssize_t n = recv(*fd, buf, sizeof(buf), 0);

	if (n <= 0 || io_write_full(*fd, buf, (size_t)n) < 0)
		close_fd(fd);
}

/* Does what comes, until the guest answers the order. deaf: the control socket is not read. */
static int32_t wait_answer(struct side *s, enum rule rule, bool deaf)
{
	struct pollfd p[2 + MAX_STREAMS];
	int32_t answer;

	for (;;) {
		p[0] = (struct pollfd){.fd = s->orders, .events = POLLIN};
		p[1] = (struct pollfd){.fd = deaf ? -1 : s->t.sock, .events = POLLIN};
		for (unsigned i = 0; i < s->streams; i++)
			p[2 + i] = (struct pollfd){.fd = s->stream[i], .events = POLLIN};
		poll(p, 2 + s->streams, -1);
		if (p[1].revents)
			take_message(s, rule);
		for (unsigned i = s->streams; i-- > 0;)
			if (p[2 + i].fd >= 0 && p[2 + i].revents)
				echo(&s->stream[i]);
		if (p[0].revents)
			break;
	}
	if (io_read_full(s->orders, &answer, sizeof(answer)) < 0)
		vmtool_die("the guest does not answer");
	return answer;
}

static void order(struct side *s, char letter, uint32_t number)
{
	uint8_t out[5] = {(uint8_t)letter};

	memcpy(out + 1, &number, sizeof(number));
	if (io_write_full(s->orders, out, sizeof(out)) < 0)
		vmtool_die("ordering");
}

static void attempt(struct side *s, const char *name, char letter, uint32_t number, enum rule rule)
{
	unsigned before = s->asked;
	int32_t answer;

	order(s, letter, number);
	answer = wait_answer(s, rule, false);
	stat_of(s, rule, CTL_STAT_STREAMS);
	printf("%s %d asked %u\n", name, answer, s->asked - before);
	fflush(stdout);
}

/* Streams of the guest's that are open: without the one for orders. */
static void print_streams(struct side *s, const char *name)
{
	printf("%s %d\n", name, (int)stat_of(s, WAIT, CTL_STAT_STREAMS) - 1);
}

static void boot(struct side *s, char **argv, int sndbuf)
{
	struct ctl_msg m;

	vmtool_boot(&s->t, &(struct vmtool_boot){.vmm = argv[1],
						 .kernel = argv[2],
						 .initrd = argv[3],
						 .root = argv[4],
						 .mem_mib = 256,
						 .vcpus = (uint32_t)atoi(argv[5]),
						 .cmdline = "rdinit=/egress-guest",
						 .sndbuf = sndbuf});
	vmtool_expect(&s->t, CTL_STATUS, &m);
	s->orders = vmtool_connect(&s->t, GUEST_AGENT_PORT);
}

/* More questions than the control socket holds: the rest is refused, and the VM goes on. */
static void try_narrow(struct side *s)
{
	struct pollfd p;
	int32_t sum;

	egress(s, 1);
	order(s, 'm', 16 | SECONDS(5));
	sum = wait_answer(s, WAIT, true);
	/* It was all said long ago. Not by CTL_STAT: a VMM that cannot send an answer ends. */
	p = (struct pollfd){.fd = s->t.sock, .events = POLLIN};
	while (poll(&p, 1, 0) > 0)
		take_message(s, REJECT);
	printf("unread reset %d unanswered %d asked %u\n", sum >> 8 & 255, sum >> 16, s->asked);
	print_streams(s, "left");
	attempt(s, "after", 'c', GUEST_EGRESS_PORT, ACCEPT);
	attempt(s, "after-echo", 'e', 100000, ACCEPT);
}

static void try_switch(struct side *s)
{
	uint64_t irqs;

	attempt(s, "off", 'c', GUEST_EGRESS_PORT, ACCEPT);
	egress(s, 1);
	attempt(s, "other-port", 'c', GUEST_EGRESS_PORT + 1, ACCEPT);
	attempt(s, "rejected", 'c', GUEST_EGRESS_PORT, REJECT);
	attempt(s, "on", 'c', GUEST_EGRESS_PORT, ACCEPT);
	attempt(s, "echo", 'e', 4u << 20, ACCEPT);
	irqs = stat_of(s, ACCEPT, CTL_STAT_IRQS);
	attempt(s, "pingpong", 'p', 1000, ACCEPT);
	printf("interrupts %llu\n", (unsigned long long)(stat_of(s, ACCEPT, CTL_STAT_IRQS) - irqs));
	egress(s, 0);
	attempt(s, "reset-by-off", 'r', 0, ACCEPT);
	attempt(s, "off-again", 'c', GUEST_EGRESS_PORT, ACCEPT);
	attempt(s, "close", 'x', 0, ACCEPT);
	print_streams(s, "left");
}

static void try_many(struct side *s)
{
	unsigned first;

	egress(s, 1);
	attempt(s, "many", 'm', 100 | SECONDS(60), ACCEPT);
	attempt(s, "many-close", 'x', 0, ACCEPT);
	/* No answer: so many are asked about and no more, until somebody answers. */
	attempt(s, "unanswered", 'm', 40 | SECONDS(5), WAIT);
	first = s->nwaiting;
	for (unsigned i = 0; i < first; i++)
		answer_one(s, REJECT, s->waiting[i]);
	print_streams(s, "unanswered-left");
	egress(s, 0);
	print_streams(s, "left");
}

static void try_fork(struct side *s)
{
	static struct side child;
	struct ctl_msg m;

	egress(s, 1);
	attempt(s, "parent", 'c', GUEST_EGRESS_PORT, ACCEPT);
	attempt(s, "parent-echo", 'e', 100000, ACCEPT);
	vmtool_fork(&s->t, &child.t);
	vmtool_expect(&s->t, CTL_FORKED, &m);
	vmtool_expect(&child.t, CTL_BOOTED, &m);
	child.orders = vmtool_connect(&child.t, GUEST_AGENT_PORT);
	attempt(&child, "child-inherited", 'r', 0, ACCEPT);
	attempt(&child, "child-off", 'c', GUEST_EGRESS_PORT, ACCEPT);
	print_streams(&child, "child-left");
	attempt(s, "parent-goes-on", 'e', 1u << 20, ACCEPT);
	egress(&child, 1);
	attempt(&child, "child-on", 'c', GUEST_EGRESS_PORT, ACCEPT);
	attempt(&child, "child-echo", 'e', 1u << 20, ACCEPT);
	attempt(s, "parent-still", 'p', 100, ACCEPT);
	print_streams(s, "parent-left");
}

int main(int argc, char **argv)
{
	static struct side s;
	bool narrow = argc > 6 && strcmp(argv[6], "narrow") == 0;

	if (argc < 6) {
		fprintf(stderr, "usage: vmegress VMM VMLINUX INITRAMFS ROOT VCPUS [narrow]\n");
		return 2;
	}
	boot(&s, argv, narrow ? 4096 : 0);
	if (narrow) {
		try_narrow(&s);
	} else {
		try_switch(&s);
		try_many(&s);
		try_fork(&s);
	}
	printf("all tried\n");
	return 0;
}
