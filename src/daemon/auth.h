/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may call: the Authorization header against the accepted keys, in a time
 * that does not depend on how much of a key was right; and, where no key is
 * asked for, protection against web pages (a page can send requests to 127.0.0.1, and by
 * DNS rebinding read the answers): one of another origin is refused, whoever opened the
 * daemon to whom, and on a loopback address a request to a name that is not localhost.
 * Pure over the configuration; any thread. fork: no state.
 */
#pragma once

#include "daemon/config.h"

enum auth_result {
	AUTH_OK,
	AUTH_MISSING, /* no "Authorization: Bearer <key>" */
	AUTH_INVALID, /* a key that is not ours */
	AUTH_ORIGIN,  /* no keys, and the request comes from a web page elsewhere */
};

/*
 * Header values may be NULL when absent. key: where AUTH_OK is answered to a key, which of
 * config.keys it is.
 */
enum auth_result auth_check(const struct config *c, const char *authorization, const char *origin,
			    const char *host, unsigned int *key);
