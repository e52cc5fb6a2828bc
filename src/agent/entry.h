/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One file system entry as JSON, for FILE and CHANGES. Stateless. fork: no state.
 */
#pragma once

#include "lib/cleanup.h"

#include <jansson.h>
#include <sys/stat.h>

/* "file", "dir", "link", "other". */
const char *entry_type(mode_t mode);
/* The size of a directory says something about its file system only: 0, but for files and links. */
json_int_t entry_size(const struct stat *st);
/* A name: as it is, or, when it is not UTF-8, in base64 under "<key>_base64". 0 or -1. */
__must_check int entry_put_name(json_t *obj, const char *key, const char *text);
/* What FILE tells of path, looked up with the rights that hold now. 0 or -errno. */
__must_check int entry_object(const char *path, json_t **out);
