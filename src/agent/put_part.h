/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of an upload that is there so far, when the upload may be resumed: a
 * hidden file beside its target, named by the upload's id and size. Whoever
 * writes it holds a lock on it, so that two streams never write one part.
 *
 * Thread: the loop's, with the user's rights (user_fs_enter()). fork: a copy has
 * the file on a disk of its own; its locks are those of the agent's descriptors.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PUT_PART_NAME 80
#define PUT_PART_ID   32

void put_part_name(char name[PUT_PART_NAME], const char *id, int64_t size);
/*
 * Opens and locks it for writing behind its end: a descriptor, and how much is there. -ENOENT when
 * it is not there and not to be made; -EALREADY when another stream writes it; -EEXIST when
 * something else has its name.
 */
int put_part_open(int dirfd, const char *name, bool make, uint64_t *have);
/* Removes parts in a directory that nobody has written to for an hour. */
void put_part_sweep(int dirfd);
