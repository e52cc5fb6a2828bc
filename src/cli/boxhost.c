/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Resources of the emulated host: how much memory it gets, its read-only
 * disks, and what it is told about them.
 */
#include "cli/boxhost.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

int boxhost_memory(const struct host_facts *f, uint64_t wanted, unsigned int *mib, struct err *err)
{
	uint64_t n = wanted;

	if (n == 0) {
		n = f->mem_available_mib / 2;
		if (n < BOXHOST_MEMORY_MIN)
			n = BOXHOST_MEMORY_MIN;
		if (n > BOXHOST_MEMORY_DEFAULT)
			n = BOXHOST_MEMORY_DEFAULT;
	}
	if (n > f->mem_available_mib)
		return err_text(err, ENOMEM,
				"not enough memory: the emulated host is to have %" PRIu64
				" MiB and %" PRIu64 " MiB are available here; free some%s",
				n, f->mem_available_mib,
				n > BOXHOST_MEMORY_MIN ? " or pass a smaller --box-memory" : "");
	*mib = (unsigned int)n;
	return 0;
}

int boxhost_add_disks(struct qemu_config *c, const struct templates *t, struct err *err)
{
	char path[PATH_MAX], serial[24];
	int rc = paths_join(c->paths, "box/programs.erofs", path);

	if (rc < 0)
		return err_text(err, -rc, "the path of the installation is too long");
	if (t->n > BOXHOST_TEMPLATES_MAX)
		return err_text(err, E2BIG,
				"the emulated host takes at most %d templates and there are %zu: "
				"remove some with podflare template rm",
				BOXHOST_TEMPLATES_MAX, t->n);
	rc = qemu_add_disk(c, "programs", path, true, err);
	for (size_t i = 0; rc == 0 && i < t->n; i++) {
		snprintf(serial, sizeof(serial), "t%zu", i);
		rc = qemu_add_disk(c, serial, t->list[i].image, true, err);
	}
	return rc;
}

int boxhost_give_templates(struct box *b, const struct templates *t, struct err *err)
{
	char list[BOXHOST_TEMPLATES_MAX * (TEMPLATES_NAME_MAX + 16)], name[32];
	size_t len = 0;

	for (size_t i = 0; i < t->n && i < BOXHOST_TEMPLATES_MAX; i++) {
		int rc;

		snprintf(name, sizeof(name), "t%zu.json", i);
		rc = box_give_file(b, name, t->list[i].json, err);
		if (rc < 0)
			return rc;
		len += (size_t)snprintf(list + len, sizeof(list) - len, "%s t%zu\n",
					t->list[i].name, i);
	}
	return box_give_data(b, "templates", list, len, err);
}
