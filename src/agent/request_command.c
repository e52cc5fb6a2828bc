/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of COMMAND and RESIZE.
 */
#include "agent/request_parse.h"

#include <errno.h>
#include <stdlib.h>

#define REQUEST_SIGNAL_MAX 64

static int parse_op(json_t *obj, enum request_command_op *op, struct err *err)
{
	static const char *const names[] = {"list", "attach", "signal", "forget"};
	int i = request_word(obj, "op", names, ARRAY_SIZE(names), err);

	if (i < 0)
		return i;
	*op = (enum request_command_op)i;
	return 0;
}

static int parse_attach(json_t *obj, struct request_command *r, struct err *err)
{
	int rc = request_integer(obj, "stdout", -1, INT64_MAX, &r->offset[0], err);

	if (rc == 0)
		rc = request_integer(obj, "stderr", -1, INT64_MAX, &r->offset[1], err);
	return rc < 0 ? rc : request_boolean(obj, "stdin", &r->input, err);
}

static int parse_signal(json_t *obj, struct request_command *r, struct err *err)
{
	int rc = request_integer(obj, "signal", 1, REQUEST_SIGNAL_MAX, &r->signal, err);

	if (rc == 0 && r->signal == 0)
		rc = err_text(err, EINVAL, "\"signal\" is missing");
	return rc < 0 ? rc : request_boolean(obj, "group", &r->group, err);
}

int request_parse_command(const void *p, size_t len, struct request_command *r, struct err *err)
{
	json_t *obj = NULL;
	int rc;

	*r = (struct request_command){.group = true};
	rc = request_object(p, len, &obj, err);
	if (rc < 0)
		return rc;
	rc = parse_op(obj, &r->op, err);
	if (rc == 0 && r->op != COMMAND_LIST)
		rc = request_id(obj, "id", true, &r->id, err);
	if (rc == 0 && r->op == COMMAND_ATTACH)
		rc = parse_attach(obj, r, err);
	if (rc == 0 && r->op == COMMAND_SIGNAL)
		rc = parse_signal(obj, r, err);
	json_decref(obj);
	if (rc < 0)
		request_command_free(r);
	return rc;
}

int request_terminal_size(json_t *obj, struct terminal_size *size, struct err *err)
{
	int rc;

	*size = (struct terminal_size){0};
	rc = request_integer(obj, "cols", 1, REQUEST_TERMINAL_MAX, &size->cols, err);
	if (rc == 0)
		rc = request_integer(obj, "rows", 1, REQUEST_TERMINAL_MAX, &size->rows, err);
	if (rc == 0 && (size->cols == 0 || size->rows == 0))
		rc = err_text(err, EINVAL, "a terminal has \"cols\" and \"rows\"");
	return rc;
}

int request_parse_resize(const void *p, size_t len, struct terminal_size *size, struct err *err)
{
	json_t *obj = NULL;
	int rc = request_object(p, len, &obj, err);

	if (rc == 0)
		rc = request_terminal_size(obj, size, err);
	json_decref(obj);
	return rc;
}

void request_command_free(struct request_command *r)
{
	free(r->id);
	*r = (struct request_command){0};
}
