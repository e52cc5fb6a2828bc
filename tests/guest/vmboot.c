/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Boots one VM without a daemon, prints the guest's console as it comes, and
 * ends with the first status report or with the end of the VM. For bringing up
 * the VMM and for tests that look at one VM alone.
 *
 * usage: vmboot VMM VMLINUX INITRAMFS ROOT MEM_MIB VCPUS [COMMAND LINE]
 * exit: 0 when the guest reported READY, 1 otherwise.
 */
#include "vmtool.h"
#include "lib/io.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	struct vmtool t = {0};
	struct ctl_msg m;
	uint64_t start = io_now_ns();

	if (argc < 7) {
		fprintf(stderr,
			"usage: vmboot VMM VMLINUX INITRAMFS ROOT MEM_MIB VCPUS [CMDLINE]\n");
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
		printf("[%llu ms] message %#x code %#x %s\n",
		       (unsigned long long)(io_now_ns() - start) / 1000000, m.type, m.code, m.text);
		if (m.type == CTL_EXITED)
			return 1;
		if (m.type == CTL_STATUS)
			return m.code == GUEST_STATUS_READY ? 0 : 1;
	}
}
