/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks a guest that uses its disk without a pause (tiny/disk_loop.S). Every
 * copy, and the first VM to the end, must go on to find on its disk what its
 * memory says.
 *
 * usage: vmdisk VMM GUEST FILLER FORKS live|pause|chain [VCPUS]
 * exit: 0 when all did.
 */
#include "vmtool.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_VMS 64
#define REPORTS 3 /* of a copy: so many times 64 rounds */

/* The next report that all is well. */
static void well(struct vmtool *t, int i)
{
	struct ctl_msg m;

	vmtool_expect(t, CTL_STATUS, &m);
	if (m.code != GUEST_STATUS_READY) {
		fprintf(stderr, "VM %d reports %#x\n", i, m.code);
		exit(1);
	}
}

/* What its VMM says of its disk; no report that came meanwhile may be of anything wrong. */
static void look(struct vmtool *t, int i)
{
	struct ctl_msg m;

	if (ctl_send(t->sock, &(struct ctl_msg){.type = CTL_STAT}, NULL) < 0)
		vmtool_die("sending CTL_STAT");
	do {
		vmtool_recv(t, &m, 0);
		if (m.type == CTL_STATUS && m.code != GUEST_STATUS_READY) {
			fprintf(stderr, "VM %d reports %#x\n", i, m.code);
			exit(1);
		}
	} while (m.type != CTL_STATS);
	printf("VM %d layers %llu bytes %llu errors %llu\n", i,
	       (unsigned long long)m.value[CTL_STAT_DISK_LAYERS],
	       (unsigned long long)m.value[CTL_STAT_DISK_BYTES],
	       (unsigned long long)m.value[CTL_STAT_DISK_ERRORS]);
}

static void boot(struct vmtool *t, char **argv, int vcpus)
{
	char cmdline[32];

	snprintf(cmdline, sizeof(cmdline), "cpus=%d", vcpus);
	vmtool_boot(t, &(struct vmtool_boot){.vmm = argv[1],
					     .kernel = argv[2],
					     .initrd = argv[3],
					     .root = argv[3],
					     .mem_mib = 128,
					     .vcpus = (uint32_t)vcpus,
					     .cmdline = cmdline});
	well(t, 0);
}

static void pause_vm(struct vmtool *t)
{
	struct ctl_msg m;

	if (ctl_send(t->sock, &(struct ctl_msg){.type = CTL_PAUSE}, NULL) < 0)
		vmtool_die("sending CTL_PAUSE");
	vmtool_expect(t, CTL_PAUSED, &m);
}

static void fork_vm(struct vmtool *parent, struct vmtool *child, int i)
{
	struct ctl_msg m;

	vmtool_fork(parent, child);
	vmtool_expect(parent, CTL_FORKED, &m);
	if (m.code) {
		fprintf(stderr, "fork %d: %s\n", i, m.text);
		exit(1);
	}
	vmtool_expect(child, CTL_BOOTED, &m);
	for (int n = 0; n < REPORTS; n++)
		well(child, i);
}

int main(int argc, char **argv)
{
	static struct vmtool vm[MAX_VMS];
	const char *mode = argc > 5 ? argv[5] : "";
	bool chain = strcmp(mode, "chain") == 0;
	int forks = argc > 5 ? atoi(argv[4]) : 0, vcpus = argc > 6 ? atoi(argv[6]) : 1;

	if (forks < 1 || forks >= MAX_VMS || vcpus < 1 || vcpus > 9) {
		fprintf(stderr, "usage: vmdisk VMM GUEST FILLER FORKS live|pause|chain [VCPUS]\n");
		return 2;
	}
	boot(&vm[0], argv, vcpus);
	if (strcmp(mode, "pause") == 0)
		pause_vm(&vm[0]);
	for (int i = 1; i <= forks; i++) {
		int parent = chain ? i - 1 : 0, done = chain ? i - 1 : i;

		fork_vm(&vm[parent], &vm[i], i);
		/* Many that are busy on several processors would get on too slowly: two at a time.
		 */
		if (vcpus > 1 && i < forks) {
			look(&vm[done], done);
			close(vm[done].sock);
			vm[done].sock = -1;
		}
	}
	for (int i = 0; i <= forks; i++)
		if (vm[i].sock >= 0)
			look(&vm[i], i);
	printf("all of one mind\n");
	return 0;
}
