/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Boots one VM without a daemon, prints the guest's console as it comes, and
 * ends with the first status report, of which it prints what the VMM counted, or
 * with the end of the VM. For bringing up the VMM and for tests that look at one
 * VM alone. With "ask" as the last word it asks every second what was counted,
 * so that who looks on sees whether the VMM still answers.
 *
 * usage: vmboot VMM VMLINUX INITRAMFS ROOT MEM_MIB VCPUS [COMMAND LINE [ask]]
 * exit: 0 when the guest reported READY, 1 otherwise.
 */
#include "vmtool.h"
#include "lib/io.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void ask(struct vmtool *t)
{
	const struct ctl_msg m = {.type = CTL_STAT};

	if (ctl_send(t->sock, &m, NULL) < 0)
		vmtool_die("sending CTL_STAT");
}

static void print_stats(const struct ctl_msg *m)
{
	static const char *const names[CTL_STAT_COUNT] = {
		[CTL_STAT_EXITS] = "exits",
		[CTL_STAT_NOTIFIES] = "notifies",
		[CTL_STAT_IRQS] = "irqs",
		[CTL_STAT_GUEST_FAULTS] = "guest-faults",
		[CTL_STAT_STREAMS] = "streams",
		[CTL_STAT_ROM_WRITES] = "rom-writes",
		[CTL_STAT_DISK_BYTES] = "disk-bytes",
		[CTL_STAT_DISK_LAYERS] = "disk-layers",
		[CTL_STAT_DISK_ERRORS] = "disk-errors",
	};

	printf("\nstats"); /* whatever the guest has printed last */
	for (unsigned int i = 0; i < CTL_STAT_COUNT; i++)
		printf(" %s=%llu", names[i], (unsigned long long)m->value[i]);
	printf("\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct vmtool t = {0};
	struct ctl_msg m;
	uint64_t start = io_now_ns();
	bool asks = argc > 8 && strcmp(argv[8], "ask") == 0, asked = false;
	uint32_t status = 0;

	if (argc < 7) {
		fprintf(stderr,
			"usage: vmboot VMM VMLINUX INITRAMFS ROOT MEM_MIB VCPUS [CMDLINE [ask]]\n");
		return 2;
	}
	vmtool_boot(&t, &(struct vmtool_boot){.vmm = argv[1],
					      .kernel = argv[2],
					      .initrd = argv[3],
					      .root = argv[4],
					      .mem_mib = (uint32_t)atoi(argv[5]),
					      .vcpus = (uint32_t)atoi(argv[6]),
					      .cmdline = argc > 7 ? argv[7] : ""});
	for (;;) {
		vmtool_recv(&t, &m, 1);
		if (m.type == CTL_STATS) {
			print_stats(&m);
			if (!asks)
				return status == GUEST_STATUS_READY ? 0 : 1;
			sleep(1);
			ask(&t);
			continue;
		}
		printf("[%llu ms] message %#x code %#x %s\n",
		       (unsigned long long)(io_now_ns() - start) / 1000000, m.type, m.code, m.text);
		if (m.type == CTL_EXITED)
			return status == GUEST_STATUS_READY ? 0 : 1;
		if (m.type == CTL_BOOTED && asks)
			ask(&t);
		if (m.type == CTL_STATUS && !asked) {
			status = m.code;
			asked = true;
			if (asks)
				return 1; /* of a guest that was to go on */
			ask(&t);
		}
	}
}
