/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose a directory is that a program writes into under names that are known: somebody else who may
 * write there puts links at these names, and has it make, or overwrite, files of his choice.
 *
 * Thread: any. fork: no state.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <limits.h>
#include <stdbool.h>

/*
 * 0 when the directory, or the one that a link leads to, is the effective user's and nobody else
 * may write to it. -ENOTDIR, -EPERM or what stat() says, with a sentence: `what` is its first words
 * ("the state directory").
 */
__must_check int owndir_check(const char *what, const char *path, struct err *err);

/*
 * Looks at the directories above, as they are behind links: whoever may write to one of them
 * without the sticky bit, or owns it and is neither root nor the effective user, can put another
 * directory in the place of ours. True, and which one, when there is such a one.
 */
bool owndir_above_is_open(const char *path, char which[PATH_MAX]);
