/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every guest boots from, held as sealed memory files that VMMs map: the
 * kernel, the initramfs and the root image. Sealed means that neither a VMM
 * nor anybody else can change or resize what the others map.
 *
 * The root image is padded to 2 MiB and read into a mapping that asks for huge
 * pages: guests read it through DAX, and their cold reads are several times
 * faster that way. It may be any file or block device; an erofs superblock
 * tells how much of a device belongs to it.
 *
 * Kernel and initramfs are the same for all templates and are loaded before the
 * loop runs; root images may be loaded by a thread (image_loader.h): reading
 * one takes seconds. fork: descriptors are close-on-exec.
 */
#pragma once

#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

struct config;

struct image {
	int kernel_fd, initramfs_fd;
};

struct root_image {
	int fd;
	uint64_t size;  /* of the memory file */
	uint64_t bytes; /* of these, the image's */
};

int image_load(struct image *im, const struct config *c, struct err *err);
void image_free(struct image *im);

/* A root image to be loaded now or later: *out is the caller's, *size that of the file. */
int image_open_root(const char *path, uint64_t *size, int *out, struct err *err);

/*
 * Any thread. fd is of image_open_root() and stays the caller's; path is for messages. *cancel (may
 * be NULL) ends it soon with -ECANCELED. Holes take no memory, until a guest reads them: so an
 * image that is longer than the host has memory to spare is refused.
 */
int image_load_root(struct root_image *out, int fd, const char *path, const _Atomic bool *cancel,
		    struct err *err);
