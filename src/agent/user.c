/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User look-up without NSS (the agent is linked statically), file-access
 * identity, and environments. The agent itself keeps uid 0; its supplementary
 * groups are the user's from start on, so that setfsuid() plus setfsgid() give
 * exactly the user's file rights.
 */
#define _GNU_SOURCE
#include "agent/user.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <unistd.h>

static int user_find(struct user *u, const char *name, struct err *err)
{
	FILE *f = fopen("/etc/passwd", "re");
	struct passwd *pw;
	int rc = -ENOENT;

	if (!f)
		return err_set(err, errno, "cannot open /etc/passwd");
	while ((pw = fgetpwent(f))) {
		if (strcmp(pw->pw_name, name) != 0)
			continue;
		snprintf(u->name, sizeof(u->name), "%s", name);
		snprintf(u->home, sizeof(u->home), "%s", pw->pw_dir);
		u->uid = pw->pw_uid;
		u->gid = pw->pw_gid;
		rc = 0;
		break;
	}
	fclose(f);
	return rc < 0 ? err_text(err, -rc, "no user %s in /etc/passwd", name) : 0;
}

static void user_find_groups(struct user *u)
{
	FILE *f = fopen("/etc/group", "re");
	struct group *gr;

	u->groups[0] = u->gid;
	u->ngroups = 1;
	if (!f)
		return; /* the primary group alone is a valid answer */
	while ((gr = fgetgrent(f)) && u->ngroups < USER_GROUPS_MAX)
		for (char **m = gr->gr_mem; *m; m++)
			if (strcmp(*m, u->name) == 0 && gr->gr_gid != u->gid) {
				u->groups[u->ngroups++] = gr->gr_gid;
				break;
			}
	fclose(f);
}

int user_load(struct user *u, const char *name, struct err *err)
{
	int rc;

	*u = (struct user){.change = geteuid() == 0};
	rc = user_find(u, name, err);
	if (rc < 0)
		return rc;
	user_find_groups(u);
	if (u->change && setgroups(u->ngroups, u->groups) < 0)
		return err_set(err, errno, "cannot set supplementary groups");
	return 0;
}

void user_fs_enter(const struct user *u)
{
	if (!u->change)
		return;
	setfsgid(u->gid);
	setfsuid(u->uid);
}

void user_fs_leave(const struct user *u)
{
	if (!u->change)
		return;
	setfsuid(0);
	setfsgid(0);
}

static bool env_same_name(const char *a, const char *b)
{
	size_t n = strcspn(a, "=");

	return strncmp(a, b, n) == 0 && b[n] == '=';
}

static void env_put(char **env, size_t *n, char *entry)
{
	for (size_t i = 0; i < *n; i++)
		if (env_same_name(entry, env[i])) {
			env[i] = entry;
			return;
		}
	env[(*n)++] = entry;
}

char **env_build(const struct user *u, char *const *extra, size_t n)
{
	static const char *const base[] = {
		"HOME=%s",
		"USER=%s",
		"LOGNAME=%s",
		"SHELL=/bin/bash",
		"LANG=C.UTF-8",
		"TERM=dumb",
		"PATH=%s/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	};
	enum { NBASE = ARRAY_SIZE(base), ENTRY = sizeof(u->home) + 128 };
	/* The pointers first, the text of the base entries behind them. */
	size_t slots = NBASE + n + 1, count = 0;
	char **env = malloc(slots * sizeof(*env) + (size_t)NBASE * ENTRY);
	char *text;

	if (!env)
		return NULL;
	text = (char *)(env + slots);
	for (size_t i = 0; i < NBASE; i++, text += ENTRY) {
		const char *arg = base[i][0] == 'U' || base[i][0] == 'L' ? u->name : u->home;
		const char *hole = strstr(base[i], "%s");

		if (hole)
			snprintf(text, ENTRY, "%.*s%s%s", (int)(hole - base[i]), base[i], arg,
				 hole + 2);
		else
			snprintf(text, ENTRY, "%s", base[i]);
		env_put(env, &count, text);
	}
	for (size_t i = 0; i < n; i++)
		env_put(env, &count, extra[i]);
	env[count] = NULL;
	return env;
}

const char *env_get(char *const *env, const char *name)
{
	size_t n = strlen(name);

	for (; *env; env++)
		if (strncmp(*env, name, n) == 0 && (*env)[n] == '=')
			return *env + n + 1;
	return NULL;
}

void env_free(char **env)
{
	free(env);
}
