/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /sys/dev/block/MAJOR:MINOR leads to the directory of a disk, or of a partition
 * in that of its disk. Stateless.
 */
#define _GNU_SOURCE
#include "daemon/disk_of.h"
#include "lib/cleanup.h"
#include "lib/io.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int disk_of(const char *root, dev_t dev, unsigned int *major_nr, unsigned int *minor_nr,
	    struct err *err)
{
	_cleanup_free char *text = NULL;
	char path[PATH_MAX];
	int rc;

	*major_nr = major(dev);
	*minor_nr = minor(dev);
	if (*major_nr == 0)
		return err_text(err, ENOTBLK, "it is on no block device of its own");
	snprintf(path, sizeof(path), "%s/sys/dev/block/%u:%u/partition", root, *major_nr,
		 *minor_nr);
	if (access(path, F_OK) < 0)
		return 0;
	snprintf(path, sizeof(path), "%s/sys/dev/block/%u:%u/../dev", root, *major_nr, *minor_nr);
	rc = io_read_file(path, 64, &text, NULL);
	if (rc == 0 && sscanf(text, "%u:%u", major_nr, minor_nr) != 2)
		rc = -EINVAL;
	return rc < 0 ? err_set(err, -rc, "cannot read %s", path) : 0;
}
