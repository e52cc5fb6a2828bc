/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mapping of errno to the words of the protocol. Stateless.
 */
#include "agent/agent.h"

#include <errno.h>

const char *agent_error_word(int num)
{
	static const struct {
		int num;
		const char *word;
	} words[] = {
		{EINVAL, "bad_request"},
		{ENAMETOOLONG, "bad_request"},
		{ELOOP, "bad_request"},
		{EPROTO, "bad_request"},
		{EMSGSIZE, "bad_request"},
		{E2BIG, "bad_request"},
		{ENOENT, "not_found"},
		{EEXIST, "exists"},
		{ENOTEMPTY, "not_empty"},
		{EISDIR, "is_directory"},
		{ENXIO, "not_a_file"},
		{ENOTDIR, "not_a_directory"},
		{EACCES, "permission_denied"},
		{EPERM, "permission_denied"},
		{EROFS, "permission_denied"},
		{ENOSPC, "no_space"},
		{EDQUOT, "no_space"},
		{EFBIG, "no_space"},
		{EMFILE, "too_many"},
		{ENFILE, "too_many"},
		{EAGAIN, "too_many"},
		{ENOMEM, "too_many"},
		{EBUSY, "busy"},
		{ETXTBSY, "busy"},
		{EALREADY, "upload_busy"},
		{ERANGE, "wrong_offset"},
		{ESHUTDOWN, "closed"},
		{ECHILD, "ended"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (words[i].num == num)
			return words[i].word;
	return "io_error";
}
