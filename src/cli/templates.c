/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finds the templates of an installation. A folder that is not whole (a build
 * that was killed, an image that is gone from the cache) is told and left out,
 * so that the others can be used; without "default" nothing is.
 */
#define _GNU_SOURCE
#include "cli/templates.h"

#include "cli/cli.h"
#include "lib/dir.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool is_name(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-");

	return n > 0 && n <= TEMPLATES_NAME_MAX && !name[n] && name[0] != '-';
}

/* "default" before all others. */
static int compare(const void *a, const void *b)
{
	const struct template *x = a, *y = b;
	bool dx = strcmp(x->name, "default") == 0, dy = strcmp(y->name, "default") == 0;

	return dx != dy ? dy - dx : strcmp(x->name, y->name);
}

/* Fills in a template: false when one of its files cannot be read, errno tells why. */
static bool look_at(struct template *t, const char *dir, const char *name)
{
	memcpy(t->name, name, strlen(name) + 1); /* is_name() has looked at its length */
	if (snprintf(t->json, sizeof(t->json), "%s/%s/template.json", dir, name) >= PATH_MAX ||
	    snprintf(t->image, sizeof(t->image), "%s/%s/rootfs.erofs", dir, name) >= PATH_MAX) {
		errno = ENAMETOOLONG;
		return false;
	}
	return access(t->json, R_OK) == 0 && access(t->image, R_OK) == 0;
}

static int read_folder(struct templates *t, DIR *dir, const char *path, struct err *err)
{
	struct dirent *e;
	int rc = 0;

	while ((e = dir_next(dir, &rc))) {
		if (!is_name(e->d_name))
			continue;
		if (t->n == TEMPLATES_MAX)
			return err_text(err, E2BIG,
					"%s has more than %d templates: remove some with podflare "
					"template rm",
					path, TEMPLATES_MAX);
		if (look_at(&t->list[t->n], path, e->d_name)) {
			t->n++;
			continue;
		}
		t->incomplete++;
		cli_say("the template %s is not whole (%s), leaving it out: podflare template "
			"build %s",
			e->d_name, strerror(errno), e->d_name);
	}
	return rc < 0 ? err_set(err, -rc, "cannot read the folder of templates %s", path) : 0;
}

int templates_find(struct templates *t, const struct paths *p, struct err *err)
{
	char path[PATH_MAX];
	DIR *dir;
	int rc;

	*t = (struct templates){.list = calloc(TEMPLATES_MAX, sizeof(*t->list))};
	if (!t->list)
		return err_set(err, ENOMEM, "cannot list the templates");
	if (paths_join(p, "guest/templates", path) < 0) {
		templates_free(t);
		return err_text(err, ENAMETOOLONG, "the path of the installation is too long");
	}
	dir = opendir(path);
	if (dir) {
		rc = read_folder(t, dir, path, err);
		closedir(dir);
	} else {
		rc = errno == ENOENT ? 0 : err_set(err, errno, "cannot list %s", path);
	}
	qsort(t->list, t->n, sizeof(*t->list), compare);
	if (rc == 0 && (t->n == 0 || strcmp(t->list[0].name, "default") != 0))
		rc = err_text(err, ENOENT, "%s/default is missing: run make first", path);
	if (rc < 0)
		templates_free(t);
	return rc;
}

void templates_free(struct templates *t)
{
	free(t->list);
	*t = (struct templates){0};
}

int templates_option(const char *name, const char *json, const char *image, char **out,
		     struct err *err)
{
	if (strchr(json, '=') || strchr(image, '='))
		return err_text(err, EINVAL,
				"the path %s has a '=' in it, which the daemon cannot "
				"take: move the installation",
				json);
	if (asprintf(out, "%s=%s=%s", name, json, image) < 0)
		return err_set(err, ENOMEM, "cannot name the template %s", name);
	return 0;
}
