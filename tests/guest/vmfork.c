/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Boots a guest with the real agent, forks it without a daemon, and asks every
 * copy something through a new stream. Prints a line a fork with its times.
 *
 * usage: vmfork VMM VMLINUX INITRAMFS ROOT MEM_MIB VCPUS FORKS [pause|chain]
 *   pause  the parent is paused first and stays so: a template
 *   chain  each copy is forked from the one before
 * exit: 0 when every copy answered, and (unless paused) the first VM still does.
 */
#include "vmtool.h"
#include "lib/io.h"
#include "proto/frame.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_VMS 256

/* PING with a number of its own and its echo. */
static void ask(int fd, uint32_t number)
{
	uint8_t out[FRAME_HEADER_SIZE + sizeof(number)], in[sizeof(out)];

	frame_pack_header(out, FRAME_PING, sizeof(number));
	memcpy(out + FRAME_HEADER_SIZE, &number, sizeof(number));
	if (io_write_full(fd, out, sizeof(out)) < 0 || io_read_full(fd, in, sizeof(in)) < 0)
		vmtool_die("the agent does not answer");
	if (in[4] != FRAME_PONG || memcmp(in + FRAME_HEADER_SIZE, &number, sizeof(number)) != 0) {
		fprintf(stderr, "wrong answer: type %#x\n", in[4]);
		exit(1);
	}
}

static unsigned long us(uint64_t from)
{
	return (unsigned long)((io_now_ns() - from) / 1000);
}

int main(int argc, char **argv)
{
	static struct vmtool vm[MAX_VMS];
	const char *mode = argc > 8 ? argv[8] : "";
	struct ctl_msg m;
	int forks, first;

	if (argc < 8) {
		fprintf(stderr,
			"usage: vmfork VMM VMLINUX INITRAMFS ROOT MEM_MIB VCPUS FORKS [pause|"
			"chain]\n");
		return 2;
	}
	forks = atoi(argv[7]);
	if (forks < 1 || forks >= MAX_VMS)
		return 2;
	vmtool_boot(&vm[0], &(struct vmtool_boot){.vmm = argv[1],
						  .kernel = argv[2],
						  .initrd = argv[3],
						  .root = argv[4],
						  .mem_mib = (uint32_t)atoi(argv[5]),
						  .vcpus = (uint32_t)atoi(argv[6]),
						  .cmdline = ""});
	vmtool_expect(&vm[0], CTL_STATUS, &m);
	if (m.code != GUEST_STATUS_READY) {
		vmtool_print_console(&vm[0]);
		return 1;
	}
	first = vmtool_connect(&vm[0], GUEST_AGENT_PORT);
	ask(first, 1);
	if (strcmp(mode, "pause") == 0) {
		if (ctl_send(vm[0].sock, &(struct ctl_msg){.type = CTL_PAUSE}, NULL) < 0)
			vmtool_die("sending CTL_PAUSE");
		vmtool_expect(&vm[0], CTL_PAUSED, &m);
		if (m.code) {
			fprintf(stderr, "pause: %s\n", m.text);
			return 1;
		}
	}
	for (int i = 1; i <= forks; i++) {
		struct vmtool *parent = strcmp(mode, "chain") == 0 ? &vm[i - 1] : &vm[0];
		uint64_t start = io_now_ns();
		unsigned long booted, connected;
		struct ctl_msg f;
		int fd;

		vmtool_fork(parent, &vm[i]);
		vmtool_expect(parent, CTL_FORKED, &f);
		if (f.code) {
			fprintf(stderr, "fork %d: %s\n", i, f.text);
			return 1;
		}
		vmtool_expect(&vm[i], CTL_BOOTED, &m);
		booted = us(start);
		fd = vmtool_connect(&vm[i], GUEST_AGENT_PORT);
		connected = us(start);
		ask(fd, (uint32_t)i + 100);
		printf("fork %d pid %llu park_us %llu save_us %llu fork_us %llu vm_us %llu runs_us "
		       "%lu "
		       "connected_us %lu answered_us %lu\n",
		       i, (unsigned long long)f.value[CTL_FORKED_PID],
		       (unsigned long long)f.value[CTL_FORKED_PARK_US],
		       (unsigned long long)f.value[CTL_FORKED_SAVE_US],
		       (unsigned long long)f.value[CTL_FORKED_FORK_US],
		       (unsigned long long)m.value[CTL_BOOTED_VM_US], booted, connected, us(start));
		fflush(stdout);
	}
	/* The stream that was open all the time belongs to the first VM still. */
	if (strcmp(mode, "pause") != 0)
		ask(first, 2);
	for (int i = 1; i <= forks; i++)
		ask(vmtool_connect(&vm[i], GUEST_AGENT_PORT), (uint32_t)i + 1000);
	printf("all answered\n");
	return 0;
}
