/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files into which the agent writes what calls print: in agent->log_dir, with the rights of the
 * user, to whom they belong. What he does to them is his own loss.
 * Thread: the loop's. fork: a copy has the same file on a disk of its own.
 */
#pragma once

#include "lib/cleanup.h"

struct agent;

/* A new empty file in the place of whatever has the name: descriptor (read and write) or -errno. */
__must_check int log_file_create(struct agent *a, const char *path);
void log_file_unlink(struct agent *a, const char *path);
