/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A JSON answer that may be long, made while it is sent: of sandboxes, each of which may have 1 MiB
 * of allowlist, the text of one is made when the one before has gone. What is short, as it nearly
 * always is, is answered in one piece. What waits for the client is in his account (held.h).
 *
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include "daemon/http.h"

#include <jansson.h>

struct pieces {
	struct request *r;
	/* Puts the next text, and sets `ended` with the last one. 0, or what pieces_put() says. */
	int (*next)(struct pieces *p);
	bool ended;
	struct buf out;
	size_t held, keep; /* taken of the account; of it, what stays taken until the end */
};

void pieces_init(struct pieces *p, struct request *r, int (*next)(struct pieces *p));
/*
 * Takes room for an answer of n texts of one_len bytes before there is any, so that it is not
 * refused when all is done. As held_take().
 */
__must_check int pieces_reserve(struct pieces *p, size_t n, size_t one_len);
/* 0, -ENOMEM, -ENOBUFS, or as held_take(). */
__must_check int pieces_put(struct pieces *p, const char *text);
/* Takes the reference; NULL is no memory. */
__must_check int pieces_put_json(struct pieces *p, json_t *value);
/*
 * Answers r with 200, or with what is wrong. ops, with pieces_pull() for its pull, become those of
 * r when it is sent while it is made.
 */
void pieces_reply(struct pieces *p, const struct request_ops *ops);
ssize_t pieces_pull(struct pieces *p, char *out, size_t max);
void pieces_free(struct pieces *p);
