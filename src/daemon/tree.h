/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who was forked from whom. Living sandboxes know their parent's id; ancestors
 * that have ended are in the database.
 * Thread: the loop's. fork: no state.
 */
#pragma once

struct daemon;
struct sandbox;

/* Whether the sandbox `id` is an ancestor of sb: 1 or 0; -E2BIG: sb has more of them than are
 * looked at (LIMIT_TREE_DEPTH). */
int tree_is_ancestor(struct daemon *d, const char *id, const struct sandbox *sb);
