/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operator's configuration of egress. Read once: what is looked at here is
 * what the emulated host gets.
 */
#include "cli/egressfile.h"

#include "lib/io.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The daemon may run in another directory. The file need not exist. */
static int make_absolute(char out[PATH_MAX], const char *path)
{
	char dir[PATH_MAX];
	int n;

	if (*path == '/')
		n = snprintf(out, PATH_MAX, "%s", path);
	else if (!getcwd(dir, sizeof(dir)))
		return -errno;
	else
		n = snprintf(out, PATH_MAX, "%s/%s", dir, path);
	return n < 0 || n >= PATH_MAX ? -ENAMETOOLONG : 0;
}

/* Whether it says "enabled": false; a problem when that cannot be told. */
static void look(struct egressfile *f)
{
	json_error_t e;
	json_t *o = json_loadb(f->data, f->len, JSON_REJECT_DUPLICATES, &e);
	const json_t *enabled = json_object_get(o, "enabled");

	if (!o)
		err_text(&f->problem, EINVAL, "%s is not JSON: line %d: %s", f->path, e.line,
			 e.text);
	else if (!json_is_object(o))
		err_text(&f->problem, EINVAL, "%s is not a JSON object", f->path);
	else if (enabled && !json_is_boolean(enabled))
		err_text(&f->problem, EINVAL, "%s: \"enabled\" must be true or false", f->path);
	else
		f->out = !json_is_false(enabled);
	json_decref(o);
}

int egressfile_read(struct egressfile *f, const char *option, struct err *err)
{
	int rc;

	*f = (struct egressfile){.out = true};
	if (!option || !*option)
		option = getenv("PODFLARE_EGRESS_CONFIG");
	if (!option || !*option)
		return 0;
	f->out = false;
	rc = make_absolute(f->path, option);
	if (rc < 0)
		return err_set(err, -rc, "the configuration of egress, %.80s", option);
	rc = io_read_file(f->path, EGRESSFILE_MAX, &f->data, &f->len);
	if (rc < 0)
		err_set(&f->problem, -rc, "cannot read %s", f->path);
	else
		look(f);
	return 0;
}

void egressfile_free(struct egressfile *f)
{
	free(f->data);
	*f = (struct egressfile){.out = false};
}
