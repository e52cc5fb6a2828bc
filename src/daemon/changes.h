/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest says has changed in its file system (answer to CHANGES): lines
 * of JSON, taken in pieces as they come, and checked. They come in the order of the
 * bytes of their paths: so a directory stands before what is below it, but other
 * names may stand between ("/a", "/a-b", "/a/c"). What is not at or below a path that
 * was asked for is an error.
 *
 * The guest is hostile: entries, bytes and the length of a line are bounded
 * (limits.h), every member is checked, and a path that is not behind the one before
 * is an error: nothing is sorted here, which would take long for paths that differ late.
 * Not synchronised. fork: plain memory.
 */
#pragma once

#include "lib/buf.h"
#include "lib/cleanup.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum change_type {
	CHANGE_NONE, /* nothing is there */
	CHANGE_FILE,
	CHANGE_DIR,
	CHANGE_LINK,
	CHANGE_OTHER,
};

struct change_stat {
	enum change_type type;
	uint32_t mode; /* permission bits */
	int64_t size;
};

struct change {
	char *path; /* absolute; any bytes but NUL */
	char *link; /* target, or NULL */
	struct change_stat now;
	struct change_stat below; /* what the read-only image has there */
	bool opaque;              /* a directory that hides what the image has below it */
	json_int_t ino, ctime_ns, mtime_ns;
};

struct changes {
	struct change *all;
	size_t n, cap;
	size_t bytes; /* that came */
	struct buf line;
	const json_t *paths; /* asked for, borrowed: nothing else may come. NULL: anything */
};

void changes_init(struct changes *c);
void changes_free(struct changes *c);

/* Bytes as they come: 0, -EPROTO (not what it should be), -E2BIG (too much), -ENOMEM. */
__must_check int changes_feed(struct changes *c, const uint8_t *p, size_t len);
/* All has come. The same errors. */
__must_check int changes_end(struct changes *c);
