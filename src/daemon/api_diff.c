/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET /v1/sandboxes/:id/diff/:other: the paths, checked, become a diff.
 */
#include "daemon/api.h"
#include "daemon/daemon.h"
#include "daemon/diff.h"
#include "daemon/limits.h"
#include "daemon/query.h"
#include "daemon/reply.h"

#include <errno.h>
#include <string.h>

static bool path_ok(struct request *r, const char *path)
{
	if (path[0] == '/' && strlen(path) <= LIMIT_PATH)
		return true;
	reply_invalid(r, "path", "path must be absolute and at most %u bytes long", LIMIT_PATH);
	return false;
}

/* All path parameters, or those that are usual. NULL: answered. */
static json_t *diff_paths(struct request *r)
{
	json_t *paths = json_array();

	for (unsigned int i = 0; paths; i++) {
		_cleanup_free char *path = NULL;
		int rc = query_get_nth(r->query, "path", i, &path);
		bool ok = false;

		if (rc == -ENOENT)
			break;
		if (rc == -EINVAL)
			reply_invalid(r, "path",
				      "path is not valid: a broken escape, a NUL character, or "
				      "not UTF-8");
		else if (i == LIMIT_DIFF_PATHS)
			reply_invalid(r, "path", "there are more than %u paths", LIMIT_DIFF_PATHS);
		else if (rc < 0)
			reply_json(r, 500, NULL);
		else if (path_ok(r, path))
			ok = json_array_append_new(paths, json_string(path)) == 0;
		if (!ok) {
			reply_json(r, 500, NULL); /* unless it was answered */
			json_decref(paths);
			return NULL;
		}
	}
	if (paths && json_array_size(paths) == 0) {
		json_decref(paths);
		paths = json_pack("[s, s, s]", "/home/user", "/root", "/tmp");
	}
	if (!paths)
		reply_json(r, 500, NULL);
	return paths;
}

void api_diff(struct request *r)
{
	struct sandbox *a = api_find_sandbox(r);
	struct sandbox *b = a ? api_find_by_id(r, r->match.other, "other") : NULL;
	json_t *paths;

	if (!b)
		return;
	if (strcmp(a->root, b->root) != 0) {
		reply_error(r, 409, "other_lineage",
			    "the two sandboxes do not descend from the same one", NULL, NULL);
		return;
	}
	paths = diff_paths(r);
	if (paths)
		diff_submit(a, b, r, paths);
}
