/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of the host: the JSON of a request frame, checked and turned into
 * plain values, and handed to the module that does it. After the parse nobody
 * looks at JSON from outside again.
 *
 * The structs own their strings; request_*_free() releases them.
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"
#include "proto/frame.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct stream;

enum request_language { LANGUAGE_PYTHON, LANGUAGE_BASH, LANGUAGE_JAVASCRIPT, LANGUAGE_ARGV };

#define REQUEST_TERMINAL_MAX 1000

struct terminal_size {
	int64_t cols, rows; /* 1..REQUEST_TERMINAL_MAX; both 0 = no terminal */
};

struct request_exec {
	enum request_language language;
	char **argv;   /* LANGUAGE_ARGV only: NULL-ended, at least one */
	char *context; /* NULL = the default one */
	char *cwd;     /* NULL = default */
	char **env;    /* nenv strings "NAME=value" */
	size_t nenv;
	bool has_user, root;           /* it names a user; and that is root */
	bool input;                    /* STDIN frames will come */
	int64_t timeout_ms;            /* 0 = none */
	uint64_t left_ns;              /* of that, when the code had come; 0 = no deadline */
	int64_t grace_ms;              /* that the host waits beyond it */
	int64_t output_limit;          /* bytes of each of stdout and stderr */
	bool end_at_limit;             /* more of them end it */
	char *keep;                    /* id of a kept command, NULL = an ordinary call */
	struct terminal_size terminal; /* with keep only */
};

struct request_file {
	char *path;
	int mode;       /* permission bits, -1 = default (PUT only) */
	char *upload;   /* PUT: id of one that may be resumed, NULL = of none */
	int64_t size;   /* of that, in all */
	bool range;     /* GET: a part only; PUT: offset is given */
	int64_t offset; /* from there */
	int64_t length; /* so much, -1 = to the end */
};

enum request_fileop_op {
	FILEOP_STAT,
	FILEOP_LIST,
	FILEOP_MKDIR,
	FILEOP_REMOVE,
	FILEOP_RENAME,
	FILEOP_CHMOD,
};

struct request_fileop {
	enum request_fileop_op op;
	char *path;
	char *to;       /* rename */
	int mode;       /* chmod; mkdir: -1 = default */
	unsigned depth; /* list */
	bool parents, recursive, overwrite;
};

#define REQUEST_ID_MAX 64

enum request_context_op { CONTEXT_LIST, CONTEXT_CREATE, CONTEXT_RESTART, CONTEXT_DELETE };

struct request_context {
	enum request_context_op op;
	char *id;  /* all but CONTEXT_LIST */
	char *cwd; /* CONTEXT_CREATE; NULL = the home */
	bool root; /* CONTEXT_CREATE */
};

enum request_command_op { COMMAND_LIST, COMMAND_ATTACH, COMMAND_SIGNAL, COMMAND_FORGET };

struct request_command {
	enum request_command_op op;
	char *id;          /* all but COMMAND_LIST */
	int64_t offset[2]; /* COMMAND_ATTACH: of stdout and stderr; -1 = what is new */
	bool input;        /* COMMAND_ATTACH: STDIN frames will come */
	int64_t signal;    /* COMMAND_SIGNAL */
	bool group;        /* COMMAND_SIGNAL: to the process group */
};

struct request_changes {
	char **paths;
	size_t npaths;
};

#define REQUEST_CA_MAX 32768u

struct request_egress {
	bool on;
	char *ca; /* PEM, NULL = none */
};

#define REQUEST_ENTROPY 32

/* Why a machine is renewed: it has booted, was made from a template, or forked from a sandbox. */
enum request_kind { RENEW_BOOT, RENEW_CREATE, RENEW_FORK };

struct request_renew {
	enum request_kind kind;
	bool reseed; /* user-space generators, too */
	int64_t realtime_ns;
	int64_t generation;
	char hostname[64];
	char id[65];
	char machine_id[33]; /* hex digits */
	char boot_id[37];    /* as text of a UUID */
	uint8_t entropy[REQUEST_ENTROPY];
	struct request_egress egress;
};

struct request_thaw {
	bool reseed; /* entropy is there */
	uint8_t entropy[REQUEST_ENTROPY];
};

/* "boot", "create", "fork". */
const char *request_kind_name(enum request_kind kind);

__must_check int request_parse_exec(const void *p, size_t len, struct request_exec *r,
				    struct err *err);
__must_check int request_parse_file(const void *p, size_t len, struct request_file *r,
				    struct err *err);
__must_check int request_parse_renew(const void *p, size_t len, struct request_renew *r,
				     struct err *err);
__must_check int request_parse_thaw(const void *p, size_t len, struct request_thaw *r,
				    struct err *err);
__must_check int request_parse_changes(const void *p, size_t len, struct request_changes *r,
				       struct err *err);
__must_check int request_parse_context(const void *p, size_t len, struct request_context *r,
				       struct err *err);
__must_check int request_parse_command(const void *p, size_t len, struct request_command *r,
				       struct err *err);
__must_check int request_parse_resize(const void *p, size_t len, struct terminal_size *size,
				      struct err *err);
__must_check int request_parse_egress(const void *p, size_t len, struct request_egress *r,
				      struct err *err);
void request_egress_free(struct request_egress *r);
/* Also the entropy is gone then. */
void request_renew_free(struct request_renew *r);
void request_thaw_free(struct request_thaw *r);
void request_command_free(struct request_command *r);
void request_context_free(struct request_context *r);
__must_check int request_parse_fileop(const void *p, size_t len, struct request_fileop *r,
				      struct err *err);
void request_fileop_free(struct request_fileop *r);
void request_changes_free(struct request_changes *r);
void request_exec_free(struct request_exec *r);
void request_file_free(struct request_file *r);

/* Starts what the frame asks for on the idle stream s, or answers why not. */
void request_begin(struct stream *s, const struct frame *f);
