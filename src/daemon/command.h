/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kept commands, as all their endpoints see them. A kept command belongs to
 * its sandbox's agent: it goes on without any client, and its output is kept
 * in the guest. The host asks the agent each time.
 * Thread: the loop's. fork: no state.
 */
#pragma once

#include "daemon/agent_failure.h"
#include "daemon/attach.h"

/* The sandbox of the path, whose second segment can be the id of a command. NULL: answered. */
struct sandbox *command_sandbox(struct request *r);
/* Answers of the agent about one command, in the words of the API. */
void command_refused(struct agent_failure *why);
/* The request is answered with what the agent has refused (an ERROR frame). */
void command_reply_refused(struct request *r, const struct frame *f);
/* Payload of a RESIZE frame. */
#define COMMAND_SIZE_MAX 64
void command_size_text(char out[COMMAND_SIZE_MAX], json_int_t cols, json_int_t rows);
/* The request is answered: the conversation is lost. */
void command_reply_lost(struct request *r, int error);
