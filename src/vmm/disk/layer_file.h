/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File access of a layered disk: positioned transfers between a sparse file and
 * scattered memory, holes, sync. What lies beyond the end of the file reads as
 * zeros. All return 0 or a negative errno.
 *
 * Thread: any; no state. Fork: no state; positioned access only, as descriptors
 * share their file offset with other processes.
 */
#pragma once

#include "vmm/disk/layers.h"

/* A place in scattered memory; moves on with every transfer, and uses the elements up. */
struct layer_iov {
	struct iovec *v;
	int n;
};

uint64_t layer_iov_bytes(const struct layer_iov *at);

/* Zeros the next len bytes, or transfers them; there must be as many. */
void layer_iov_zero(struct layer_iov *at, uint64_t len);
__must_check int layer_file_read(int fd, struct layer_iov *at, uint64_t len, uint64_t off);
__must_check int layer_file_write(int fd, struct layer_iov *at, uint64_t len, uint64_t off);

/* Makes a hole; the length of the file stays. */
__must_check int layer_file_punch(int fd, uint64_t off, uint64_t len);
__must_check int layer_file_sync(int fd);

/* One regular empty file, opened twice as struct layer_fds says: 0, or -EINVAL. */
__must_check int layer_file_check(struct layer_fds fds);

/* Bytes of storage, or -errno. */
int64_t layer_file_bytes(int fd);
