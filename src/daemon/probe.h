/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asking a guest whether it lives, when a stream to it broke: PING on a new
 * stream, with a short limit. A guest that halted closes its streams and runs
 * no code any more; without this the next command would wait for a long time.
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

struct sandbox;

/* Ends the sandbox if no answer comes. Harmless while it is being asked already. */
void probe_start(struct sandbox *sb);
