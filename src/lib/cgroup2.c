/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /proc/self/cgroup says which group, /proc/self/mountinfo where that is.
 */
#define _GNU_SOURCE
#include "lib/cgroup2.h"
#include "lib/cleanup.h"
#include "lib/io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROC_MAX (1u << 20)

static const struct {
	const char *name;
	unsigned int bit;
} controllers[] = {
	{"cpu", CGROUP2_CPU},
	{"memory", CGROUP2_MEMORY},
	{"pids", CGROUP2_PIDS},
	{"io", CGROUP2_IO},
};

void cgroup2_names(unsigned int set, char *out, size_t len)
{
	size_t n = 0;

	out[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(controllers); i++)
		if ((set & controllers[i].bit) && n < len)
			n += (size_t)snprintf(out + n, len - n, "%s%s", n ? " " : "",
					      controllers[i].name);
}

unsigned int cgroup2_parse(const char *names)
{
	unsigned int set = 0;

	while (*names) {
		size_t len = strcspn(names, " \n");

		for (size_t i = 0; i < ARRAY_SIZE(controllers); i++)
			if (strlen(controllers[i].name) == len &&
			    memcmp(names, controllers[i].name, len) == 0)
				set |= controllers[i].bit;
		names += len;
		names += strspn(names, " \n");
	}
	return set;
}

static int read_proc(const char *root, const char *file, char **out, struct err *err)
{
	char path[PATH_MAX];
	size_t len;
	int rc = snprintf(path, sizeof(path), "%s%s", root, file) < (int)sizeof(path)
			 ? io_read_file(path, PROC_MAX, out, &len)
			 : -ENAMETOOLONG;

	return rc < 0 ? err_set(err, -rc, "cannot read %s", file) : 0;
}

/* The text of a line that begins like this, cut off at its end; NULL: there is none. */
static char *line_after(char *text, const char *start)
{
	for (char *line = text, *next; line && *line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (strncmp(line, start, strlen(start)) == 0)
			return line + strlen(start);
	}
	return NULL;
}

/* Blanks and backslashes in a path of mountinfo are "\040" and so on. */
static void unescape(char *s)
{
	char *out = s;

	for (; *s; s++) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' &&
		    s[3] >= '0' && s[3] <= '7') {
			*out++ = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
			s += 3;
		} else {
			*out++ = *s;
		}
	}
	*out = '\0';
}

/* The rest of the group's path below what is mounted; NULL: it is not below it. */
static const char *below(const char *group, const char *mounted)
{
	size_t len = strcmp(mounted, "/") == 0 ? 0 : strlen(mounted);

	if (strncmp(group, mounted, len) != 0 || (group[len] && group[len] != '/'))
		return NULL;
	return strcmp(group + len, "/") == 0 ? "" : group + len;
}

/*
 * One line of mountinfo: "36 35 98:0 ROOT MOUNTPOINT OPTIONS [more...] - TYPE SOURCE OPTIONS".
 * True: the group is there.
 */
static bool look_at_mount(struct cgroup2_place *p, char *line, const char *root, const char *group)
{
	char *dash = strstr(line, " - "), *field[5], *save = NULL;
	const char *rest;

	if (!dash || strncmp(dash + 3, "cgroup2 ", 8) != 0)
		return false;
	p->favordynmods = strstr(dash + 3, "favordynmods") != NULL;
	*dash = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(field); i++) {
		field[i] = strtok_r(i ? NULL : line, " ", &save);
		if (!field[i])
			return false;
	}
	unescape(field[3]);
	unescape(field[4]);
	rest = below(group, field[3]);
	return rest && snprintf(p->dir, sizeof(p->dir), "%s%s%s", root, field[4], rest) <
			       (int)sizeof(p->dir);
}

static int find_dir(struct cgroup2_place *p, const char *root, struct err *err)
{
	_cleanup_free char *self = NULL, *mounts = NULL;
	const char *group;
	int rc = read_proc(root, "/proc/self/cgroup", &self, err);

	if (rc == 0)
		rc = read_proc(root, "/proc/self/mountinfo", &mounts, err);
	if (rc < 0)
		return rc;
	group = line_after(self, "0::");
	if (!group)
		return err_text(err, ENOENT, "this host has no cgroup v2");
	for (char *line = mounts, *next; line && *line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (look_at_mount(p, line, root, group))
			return 0;
	}
	return err_text(err, ENOENT, "the control group %s is in no cgroup v2 that is mounted",
			group);
}

/* The group above, for who was started in one that is there for that only. */
static void leave_start(struct cgroup2_place *p)
{
	char *slash = strrchr(p->dir, '/');

	p->in_start = slash && strcmp(slash + 1, CGROUP2_START) == 0;
	if (p->in_start)
		*slash = '\0';
}

int cgroup2_find(struct cgroup2_place *p, const char *root, struct err *err)
{
	static const char *const ours[] = {"", "/cgroup.procs", "/cgroup.subtree_control"};
	_cleanup_free char *names = NULL;
	char path[PATH_MAX + 32];
	size_t len;
	int rc;

	*p = (struct cgroup2_place){0};
	rc = find_dir(p, root, err);
	if (rc < 0)
		return rc;
	leave_start(p);
	for (size_t i = 0; i < ARRAY_SIZE(ours); i++) {
		snprintf(path, sizeof(path), "%s%s", p->dir, ours[i]);
		if (access(path, W_OK) < 0)
			return err_text(err, EACCES,
					"the control group %s was not delegated to this user (%s)",
					p->dir, strerror(errno));
	}
	snprintf(path, sizeof(path), "%s/cgroup.controllers", p->dir);
	rc = io_read_file(path, PROC_MAX, &names, &len);
	if (rc < 0)
		return err_set(err, -rc, "cannot read %s", path);
	p->controllers = cgroup2_parse(names);
	return 0;
}
