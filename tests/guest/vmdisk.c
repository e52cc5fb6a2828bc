/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks a guest that uses its disk without a pause (tiny/disk_loop.S). Every
 * copy, and the first VM to the end, must go on to find on its disk what its
 * memory says.
 *
 * usage: vmdisk VMM GUEST FILLER FORKS live|pause|chain
 * exit: 0 when all did.
 */
#include "vmtool.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

int main(int argc, char **argv)
{
	static struct vmtool vm[MAX_VMS];
	const char *mode = argc > 5 ? argv[5] : "";
	bool chain = strcmp(mode, "chain") == 0;
	struct ctl_msg m;
	int forks = argc > 5 ? atoi(argv[4]) : 0;

	if (forks < 1 || forks >= MAX_VMS) {
		fprintf(stderr, "usage: vmdisk VMM GUEST FILLER FORKS live|pause|chain\n");
		return 2;
	}
	vmtool_boot(&vm[0], &(struct vmtool_boot){.vmm = argv[1],
						  .kernel = argv[2],
						  .initrd = argv[3],
						  .root = argv[3],
						  .mem_mib = 128,
						  .vcpus = 1,
						  .cmdline = ""});
	well(&vm[0], 0);
	if (strcmp(mode, "pause") == 0) {
		if (ctl_send(vm[0].sock, &(struct ctl_msg){.type = CTL_PAUSE}, NULL) < 0)
			vmtool_die("sending CTL_PAUSE");
		vmtool_expect(&vm[0], CTL_PAUSED, &m);
	}
	for (int i = 1; i <= forks; i++) {
		struct vmtool *parent = chain ? &vm[i - 1] : &vm[0];

		vmtool_fork(parent, &vm[i]);
		vmtool_expect(parent, CTL_FORKED, &m);
		if (m.code) {
			fprintf(stderr, "fork %d: %s\n", i, m.text);
			return 1;
		}
		vmtool_expect(&vm[i], CTL_BOOTED, &m);
		for (int n = 0; n < REPORTS; n++)
			well(&vm[i], i);
	}
	for (int i = 0; i <= forks; i++) {
		if (ctl_send(vm[i].sock, &(struct ctl_msg){.type = CTL_STAT}, NULL) < 0)
			vmtool_die("sending CTL_STAT");
		do {
			vmtool_recv(&vm[i], &m, 0);
			if (m.type == CTL_STATUS && m.code != GUEST_STATUS_READY) {
				fprintf(stderr, "VM %d reports %#x\n", i, m.code);
				return 1;
			}
		} while (m.type != CTL_STATS);
		printf("VM %d layers %llu bytes %llu errors %llu\n", i,
		       (unsigned long long)m.value[CTL_STAT_DISK_LAYERS],
		       (unsigned long long)m.value[CTL_STAT_DISK_BYTES],
		       (unsigned long long)m.value[CTL_STAT_DISK_ERRORS]);
	}
	printf("all of one mind\n");
	return 0;
}
