/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries as JSON.
 */
#define _GNU_SOURCE
#include "agent/entry.h"
#include "lib/base64.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

const char *entry_type(mode_t mode)
{
	return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "dir" : S_ISLNK(mode) ? "link" : "other";
}

json_int_t entry_size(const struct stat *st)
{
	return S_ISREG(st->st_mode) || S_ISLNK(st->st_mode) ? st->st_size : 0;
}

int entry_put_name(json_t *obj, const char *key, const char *text)
{
	char key64[32], out[BASE64_SIZE(PATH_MAX)];
	json_t *str = json_string(text);

	if (str)
		return json_object_set_new(obj, key, str);
	snprintf(key64, sizeof(key64), "%s_base64", key);
	str = json_stringn(out, base64_encode(out, (const uint8_t *)text, strlen(text)));
	return json_object_set_new(obj, key64, str);
}

/* Where a link points, and what is there if anything is. */
static int entry_put_link(json_t *obj, const char *path)
{
	char to[PATH_MAX];
	ssize_t n = readlink(path, to, sizeof(to) - 1);
	struct stat st;

	if (n < 0)
		return -errno;
	to[n] = '\0';
	if (entry_put_name(obj, "link", to) < 0)
		return -ENOMEM;
	if (stat(path, &st) == 0)
		json_object_set_new(obj, "target_type", json_string(entry_type(st.st_mode)));
	return 0;
}

int entry_object(const char *path, json_t **out)
{
	struct stat st;
	json_t *obj;
	int rc;

	if (lstat(path, &st) < 0)
		return -errno;
	obj = json_pack("{s:s, s:I, s:i, s:I, s:I, s:I}", "type", entry_type(st.st_mode), "size",
			entry_size(&st), "mode", (int)(st.st_mode & 07777), "mtime_ms",
			(json_int_t)st.st_mtim.tv_sec * 1000 + st.st_mtim.tv_nsec / 1000000, "uid",
			(json_int_t)st.st_uid, "gid", (json_int_t)st.st_gid);
	rc = obj && entry_put_name(obj, "path", path) == 0 ? 0 : -ENOMEM;
	if (rc == 0 && S_ISLNK(st.st_mode))
		rc = entry_put_link(obj, path);
	if (rc < 0) {
		json_decref(obj);
		return rc;
	}
	*out = obj;
	return 0;
}
