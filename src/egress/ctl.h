/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's end of the proxy: messages of proto/egress.h. What is not one of
 * them is a defect of ours, and ends the process, as does the end of the socket.
 *
 * Thread: the loop's.
 */
#pragma once

#include "egress/conn.h"

struct ctl {
	struct loop *loop;
	struct egress *e;
	struct conns *conns;
	struct loop_src src;
	int rc; /* of the loop's end: 0, or -errno */
};

/* fd is non-blocking and stays the caller's. */
__must_check int ctl_init(struct ctl *c, struct loop *loop, struct egress *e, struct conns *conns,
			  int fd);
