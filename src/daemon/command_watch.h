/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The deadlines of a sandbox's kept commands, as the host sees them. The agent
 * ends each at its timeout; this is for an agent that does not. Nothing is
 * asked before: when the time and PODFLARE_EXEC_SLACK are over, the agent is
 * asked once what runs. No answer within as long again, or one that says that
 * the command runs still, ends the sandbox.
 *
 * The clock is the guest's: it stands still while that is frozen.
 * One object a sandbox, made with the first command that has a timeout.
 * Thread: the loop's. fork: a copy of a sandbox has the same commands, see
 * command_watch_copy().
 */
#pragma once

#include <stdint.h>

struct command_watch;
struct sandbox;

/* This command runs since now, and has so long. Without memory only the agent watches it. */
void command_watch_add(struct sandbox *sb, const char *id, int64_t pid, uint64_t timeout_ms);
/* sb is a copy that is being made of a frozen sandbox: it has its commands, with the time that is
 * left. They are not watched before command_watch_go(). */
void command_watch_copy(struct sandbox *sb, const struct sandbox *from);
void command_watch_go(struct sandbox *sb);
