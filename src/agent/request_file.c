/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of requests about files: PUT, GET, FILE, CHANGES.
 */
#define _GNU_SOURCE
#include "agent/request_parse.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUEST_DEPTH_MAX  16
#define REQUEST_UPLOAD_MAX 32

/* The id of an upload becomes part of a file's name. */
static int parse_upload(json_t *obj, struct request_file *r, struct err *err)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
	const json_t *id = json_object_get(obj, "upload");
	const char *text = json_string_value(id);
	int rc;

	if (!id)
		return 0;
	if (!text || !*text || strspn(text, letters) != strlen(text) ||
	    strlen(text) > REQUEST_UPLOAD_MAX)
		return err_text(err, EINVAL, "\"upload\" must be 1 to 32 letters a-z and digits");
	rc = request_integer(obj, "size", 1, INT64_MAX, &r->size, err);
	if (rc < 0)
		return rc;
	if (r->size == 0)
		return err_text(err, EINVAL, "\"size\" is missing");
	r->upload = strdup(text);
	return r->upload ? 0 : err_set(err, ENOMEM, "cannot take \"upload\"");
}

int request_parse_file(const void *p, size_t len, struct request_file *r, struct err *err)
{
	json_t *obj = NULL;
	int64_t mode = -1;
	int rc;

	*r = (struct request_file){.mode = -1, .length = -1};
	rc = request_object(p, len, &obj, err);
	if (rc < 0)
		return rc;
	rc = request_path(obj, "path", true, &r->path, err);
	if (rc == 0)
		rc = request_integer(obj, "mode", 0, 0777, &mode, err);
	r->mode = (int)mode;
	if (rc == 0)
		rc = request_integer(obj, "offset", 0, INT64_MAX, &r->offset, err);
	if (rc == 0)
		rc = request_integer(obj, "length", 0, INT64_MAX, &r->length, err);
	r->range = json_object_get(obj, "offset") || json_object_get(obj, "length");
	if (rc == 0)
		rc = parse_upload(obj, r, err);
	json_decref(obj);
	if (rc < 0)
		request_file_free(r);
	return rc;
}

void request_file_free(struct request_file *r)
{
	free(r->path);
	free(r->upload);
	r->path = r->upload = NULL;
}

static int parse_fileop_op(json_t *obj, enum request_fileop_op *op, struct err *err)
{
	static const char *const names[] = {"stat", "list", "mkdir", "remove", "rename", "chmod"};
	int i = request_word(obj, "op", names, ARRAY_SIZE(names), err);

	if (i < 0)
		return i;
	*op = (enum request_fileop_op)i;
	return 0;
}

/* The members that only some operations have. */
static int parse_fileop_rest(json_t *obj, struct request_fileop *r, struct err *err)
{
	int64_t mode = -1, depth = 1;
	int rc = 0;

	if (r->op == FILEOP_RENAME)
		rc = request_path(obj, "to", true, &r->to, err);
	if (rc == 0)
		rc = request_integer(obj, "mode", 0, 07777, &mode, err);
	if (rc == 0 && r->op == FILEOP_CHMOD && mode < 0)
		rc = err_text(err, EINVAL, "\"mode\" is missing");
	if (rc == 0)
		rc = request_integer(obj, "depth", 1, REQUEST_DEPTH_MAX, &depth, err);
	if (rc == 0)
		rc = request_boolean(obj, "parents", &r->parents, err);
	if (rc == 0)
		rc = request_boolean(obj, "recursive", &r->recursive, err);
	if (rc == 0)
		rc = request_boolean(obj, "overwrite", &r->overwrite, err);
	r->mode = (int)mode;
	r->depth = (unsigned)depth;
	return rc;
}

int request_parse_fileop(const void *p, size_t len, struct request_fileop *r, struct err *err)
{
	json_t *obj = NULL;
	int rc;

	*r = (struct request_fileop){.parents = true, .overwrite = true};
	rc = request_object(p, len, &obj, err);
	if (rc < 0)
		return rc;
	rc = parse_fileop_op(obj, &r->op, err);
	if (rc == 0)
		rc = request_path(obj, "path", true, &r->path, err);
	if (rc == 0)
		rc = parse_fileop_rest(obj, r, err);
	json_decref(obj);
	if (rc < 0)
		request_fileop_free(r);
	return rc;
}

void request_fileop_free(struct request_fileop *r)
{
	free(r->path);
	free(r->to);
	r->path = r->to = NULL;
}

int request_parse_changes(const void *p, size_t len, struct request_changes *r, struct err *err)
{
	json_t *obj = NULL, *list, *v;
	size_t i;
	int rc;

	*r = (struct request_changes){0};
	rc = request_object(p, len, &obj, err);
	if (rc < 0)
		return rc;
	list = json_object_get(obj, "paths");
	if (!json_is_array(list) || json_array_size(list) == 0)
		rc = err_text(err, EINVAL, "\"paths\" must be a list of paths");
	else if (!(r->paths = calloc(json_array_size(list), sizeof(*r->paths))))
		rc = err_set(err, ENOMEM, "cannot take \"paths\"");
	json_array_foreach(list, i, v)
	{
		const char *text = json_string_value(v);

		if (rc < 0 || !r->paths)
			break;
		if (!text || strlen(text) >= PATH_MAX)
			rc = err_text(err, EINVAL, "\"paths\" holds what is not a path");
		else if (!(r->paths[r->npaths++] = strdup(text)))
			rc = err_set(err, ENOMEM, "cannot take \"paths\"");
	}
	json_decref(obj);
	if (rc < 0)
		request_changes_free(r);
	return rc;
}

void request_changes_free(struct request_changes *r)
{
	for (size_t i = 0; i < r->npaths; i++)
		free(r->paths[i]);
	free(r->paths);
	*r = (struct request_changes){0};
}
