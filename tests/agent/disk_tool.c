/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_mount() as a program, for tests on a loop device: disk-tool DEV IMAGE TARGET.
 */
#include "agent/boot.h"
#include "agent/disk.h"

#include <stdarg.h>
#include <stdio.h>

void boot_say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

int main(int argc, char **argv)
{
	struct err err;

	if (argc != 4)
		return 2;
	if (disk_mount(argv[1], argv[2], argv[3], &err) == 0)
		return 0;
	fprintf(stderr, "%s\n", err.msg);
	return 1;
}
