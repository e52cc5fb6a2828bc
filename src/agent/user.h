/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The unprivileged user on whose behalf the agent acts: who it is, the
 * environment of its processes, and file access with its rights.
 *
 * File access: between user_fs_enter() and user_fs_leave() path lookups, opens
 * and creations are checked and owned as the user's (setfsuid; the capabilities
 * that override file permissions are off meanwhile). Nothing may block or
 * return to the event loop in between.
 *
 * fork: plain values.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <stdbool.h>
#include <sys/types.h>

#define USER_GROUPS_MAX 32

struct user {
	char name[33];
	char home[256];
	uid_t uid;
	gid_t gid;
	gid_t groups[USER_GROUPS_MAX];
	size_t ngroups;
	bool change; /* the agent is root and must change identity to act as the user */
};

/* Looks `name` up in /etc/passwd and /etc/group, and gives the agent the user's groups. */
__must_check int user_load(struct user *u, const char *name, struct err *err);

void user_fs_enter(const struct user *u);
void user_fs_leave(const struct user *u);

/*
 * Environment of a process of the user: the base (HOME, USER, PATH, LANG...)
 * with the "NAME=value" strings of `extra` (n of them) put over it. NULL-ended,
 * one allocation for everything that is not in extra: free with env_free().
 * extra must outlive it. NULL when out of memory.
 */
char **env_build(const struct user *u, char *const *extra, size_t n);
/* Value of a variable, NULL when it is not there. */
const char *env_get(char *const *env, const char *name);
void env_free(char **env);
