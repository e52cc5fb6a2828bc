/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last words to a guest, and the close behind them. A UNIX socket that is
 * closed with unread bytes is reset, which may throw away what was just sent:
 * so the reply goes out, then the end of it, and what the guest still sends is
 * read and dropped until it closes too, within bounds of time and bytes.
 *
 * Thread: the loop's.
 */
#pragma once

#include "egress/egress.h"

struct lingers {
	struct loop *loop;
	struct egress *e;
	struct list list;
};

void lingers_init(struct lingers *l, struct loop *loop, struct egress *e);
/* Closes all that are left. */
void lingers_free(struct lingers *l);

/* Takes fd; ends the stream when it is closed. */
void linger_close(struct lingers *l, int fd, uint64_t stream, const void *last, size_t len);

/* The same with a denial as q's protocol tells it: a reply of HTTP, or of SOCKS. */
void linger_deny(struct lingers *l, int fd, const struct egress_question *q,
		 const struct egress_verdict *v);
/* An HTTP denial with a status of its own. */
void linger_deny_http(struct lingers *l, int fd, const struct egress_question *q,
		      const struct egress_verdict *v, unsigned int status);
