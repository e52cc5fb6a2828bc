/* SPDX-License-Identifier: Apache-2.0 */
/*
 * finit_module() for each line of the order file.
 */
#define _GNU_SOURCE
#include "agent/modules.h"
#include "agent/boot.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int module_load(const char *dir, const char *name)
{
	_cleanup_fd int fd = -1;
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
		return -errno;
	return 0;
}

int modules_load(const char *dir)
{
	_cleanup_free char *order = NULL;
	char path[256], *save = NULL;
	int loaded = 0, rc;

	snprintf(path, sizeof(path), "%s/order", dir);
	rc = io_read_file(path, 65536, &order, NULL);
	if (rc < 0)
		return rc;
	for (char *name = strtok_r(order, "\n", &save); name; name = strtok_r(NULL, "\n", &save)) {
		rc = module_load(dir, name);
		if (rc < 0)
			boot_say("cannot load the kernel module %s: %s", name, strerror(-rc));
		else
			loaded++;
	}
	return loaded;
}
