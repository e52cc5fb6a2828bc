/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What makes a machine one of its own (see renewal.h for the order): the
 * kernel's part in renew.c, which the test harness replaces, and files in
 * renew_files.c.
 *
 * Files are written again in place when their size does not change: that
 * dirties less memory and disk than a new file, and nobody looks meanwhile.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "agent/request.h"

#include <stdbool.h>

/*
 * What the first renewal of a machine leaves for those of its copies: to look a file up by its name
 * touches some twenty pages, and each is a fault in a copy.
 */
struct renew_kept {
	int random_fd;    /* /dev/urandom; -1 = not opened yet */
	int mounts_fd;    /* /proc/self/mountinfo, whose changes can be asked for; -1 */
	bool has_boot_id; /* the file was mounted when mounts_fd was asked last */
};

/* Fresh bytes for the kernel's random numbers, which are made of them from now on. */
__must_check int renew_random(struct renew_kept *k, const uint8_t entropy[REQUEST_ENTROPY],
			      struct err *err);
/* Random numbers, clock, host name of the kernel. */
__must_check int renew_kernel(struct renew_kept *k, const struct request_renew *r, struct err *err);
/* What /proc shows as boot id: a file in run_dir, mounted over it. */
__must_check int renew_boot_id(struct renew_kept *k, const char *run_dir,
			       const struct request_renew *r, struct err *err);

/* hostname, hosts, machine-id. */
__must_check int renew_etc(const char *etc_dir, const struct request_renew *r, struct err *err);
/* sandbox-id, fork-generation. */
__must_check int renew_run(const char *run_dir, const struct request_renew *r, struct err *err);
/* fork.json, always of the same size; serial, hold and done are for the REPL (guest/repl/renew.py).
 * 0 or -errno. */
__must_check int renew_state(const char *run_dir, const struct request_renew *r, unsigned serial,
			     bool hold, bool done);
/* One file of a directory, with mode 0644. 0 or -errno. */
__must_check int renew_write(const char *dir, const char *name, const char *text);
