/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forking a sandbox: its user processes are frozen, its VM is forked n times,
 * they go on, and the children are renewed side by side. Answered when every
 * child is ready or has failed. Forks of one sandbox queue behind each other.
 *
 * What has failed does not harm the rest: a child without the others' luck is an
 * error in its place; the parent goes on in any case, or is ended with a reason
 * when it cannot. When the client leaves, the children it would have got end.
 *
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/http.h"
#include "daemon/sandbox.h"

/* Takes over the request; answers it, at once or later. */
void fork_submit(struct sandbox *sb, struct request *r, unsigned int n, bool reseed);
